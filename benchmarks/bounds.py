"""What the default bounds on updates protect from, and what they cost on data that differ.

``python -m benchmarks.bounds`` trains a softmax regression on digits by federated averaging with the aggregator itself: 20
devices, 10 rounds, with the default bounds (`fedgrass.protocol.settings.Checks`) and with none. Data are spread evenly, by label
(Dirichlet 0.5) or by quantity (log-normal, sigma 1.5). The liar claims a billion examples and sends the honest devices' mean,
reversed: as it is, or a thousand times as long. Means of some seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.aggregation import header_of
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription
from fedgrass.cloud.aggregator.aggregate import aggregate
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.protocol.check_settings import Checks
from fedgrass.simulation.updates import VirtualUpdates
from fedgrass.strategies import strategy_named
from fedgrass.update.writer import encode_update

DEVICES, ROUNDS = 20, 10
Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]
BOUNDS = {
    "defaults": Checks(),
    # The largest whole number that float64 holds exactly, and so the most that may be claimed at all.
    "none": Checks(max_examples=1 << 53, max_examples_over_median=0, clip_norm_over_median=0),
}
LIARS: dict[str, float | None] = {"no liar": None, "liar": 1.0, "liar, long": 1000.0}


def evenly(y: Labels, generator: np.random.Generator) -> list[Labels]:
    """The same number of examples for each."""
    return [np.asarray(part) for part in np.array_split(generator.permutation(len(y)), DEVICES)]


def by_label(y: Labels, generator: np.random.Generator) -> list[Labels]:
    """Each label shared out by a draw from Dirichlet 0.5."""
    parts: list[list[int]] = [[] for _ in range(DEVICES)]
    for label in range(10):
        places = generator.permutation(np.flatnonzero(y == label))
        ends = np.cumsum(generator.dirichlet([0.5] * DEVICES) * len(places)).astype(int)[:-1]
        for part, some in zip(parts, np.split(places, ends), strict=True):
            part.extend(some)
    return [np.array(part, np.int64) for part in parts if part]


def by_quantity(y: Labels, generator: np.random.Generator) -> list[Labels]:
    """Log-normal numbers of examples."""
    shares = generator.lognormal(sigma=1.5, size=DEVICES)
    ends = np.cumsum(shares / shares.sum() * len(y)).astype(int)[:-1]
    return [np.asarray(part) for part in np.split(generator.permutation(len(y)), ends) if len(part)]


SPREADS: dict[str, Callable[[Labels, np.random.Generator], list[Labels]]] = {
    "evenly": evenly,
    "by label": by_label,
    "by quantity": by_quantity,
}


def train(weights: Doubles, x: Doubles, y: Labels) -> Doubles:
    """Return the difference that five steps make."""
    w = weights.copy()
    for _ in range(5):
        logits = x @ w
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        # The gradient of softmax cross-entropy by the logits: p − y.
        p[np.arange(len(y)), y] -= 1
        w -= 0.5 * x.T @ p / len(y)
    return np.asarray(w - weights)


def accuracy(folder: Path, spread: str, checks: Checks, length: float | None, seed: int) -> float:
    """Return the accuracy on data held back; ``length`` is the liar's in those of the honest mean."""
    generator = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    # Pixels from 0 to 1, and a column of ones for the bias.
    x = np.hstack([x / 16, np.ones((len(x), 1))])
    order = generator.permutation(len(x))
    test, rest = order[:360], order[360:]
    parts = [rest[part] for part in SPREADS[spread](y[rest], generator)]
    base = _model(folder)
    zeros = base.parameters()
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256, checks=checks)
    weights = np.zeros((65, 10))
    for _ in range(ROUNDS):
        deltas = [(train(weights, x[part], y[part]), len(part)) for part in parts]
        # The liar knows the honest mean, the strongest position there is, and sends its opposite.
        if length is not None:
            honest = deltas[1:]
            mean = np.average([delta for delta, _ in honest], axis=0, weights=[count for _, count in honest])
            deltas[0] = (np.asarray(-length * mean), 10**9)
        updates = VirtualUpdates(folder)
        for device, (delta, count) in enumerate(deltas):
            header = header_of(base, f"device-{device:02d}").model_copy(update={"num_examples": count})
            local = {"w": delta.ravel().astype(np.float32)}
            updates.put(1, header.thing, encode_update(zeros, local, header).to_bytes())
        found = aggregate(base, updates, updates.list(), strategy_named("fedavg"), expected).parameters
        if found is None:
            raise SystemExit("expected a model")
        weights = weights + found["w"].reshape(65, 10)
    return float(((x[test] @ weights).argmax(axis=1) == y[test]).mean())


def _model(folder: Path) -> Bundle:
    x = TensorDescription(name="x", shape=(1,), dtype="float32")
    return new_bundle(
        folder / "base",
        NewModel(
            engine="keras",
            name="softmax",
            parameters={"w": np.zeros(650, np.float32)},
            x=x,
            y=x,
            output=x,
            loss="mean_squared_error",
            batch_size=1,
        ),
    )


def main() -> None:
    """Print the table as docs/strategies.md has it, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    for spread in SPREADS:
        for liar, length in LIARS.items():
            for name, checks in BOUNDS.items():
                runs = []
                for seed in range(arguments.seeds):
                    with tempfile.TemporaryDirectory() as folder:
                        runs.append(accuracy(Path(folder), spread, checks, length, seed))
                table.setdefault(f"{spread}, {liar}", {})[name] = round(float(np.mean(runs)), 3)
    print("| data | " + " | ".join(BOUNDS) + " |\n|---|" + "---|" * len(BOUNDS))
    for row, found in table.items():
        print(f"| {row} | " + " | ".join(f"{found[name]:.3f}" for name in BOUNDS) + " |")
    print(json.dumps({"benchmark": "bounds", "seeds": arguments.seeds, "accuracy": table}))


if __name__ == "__main__":
    main()
