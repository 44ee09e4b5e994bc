"""Accuracy of the mean and of each robust strategy while 4 of 20 devices attack: ``python -m tests.cloud.aggregator.attacks``.

Softmax regression on digits, trained here in NumPy: the strategies, not the engine, are on trial.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from cloud.aggregator.strategies import strategy_named
from tests.cloud.aggregator.updates import Memory, combine, flat, tiny_model, update_of

Doubles = NDArray[np.float64]


def _train(weights: Doubles, x: Doubles, y: NDArray[np.int64]) -> Doubles:
    w = weights.copy()
    for _ in range(5):
        logits = x @ w
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        w -= 0.5 * x.T @ p / len(y)
    return np.asarray(w - weights)


ATTACKS: dict[str, Callable[[Doubles], Doubles]] = {
    "none": lambda d: d,
    "sign flip": lambda d: -5 * d,
    "scale 100": lambda d: 100 * d[::-1],
    "label flip": lambda d: d,
    "nan": lambda d: np.full_like(d, np.nan),
}
ROBUST = ["median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan"]


def attack_table(folder: Path, rounds: int = 4) -> dict[str, dict[str, float]]:
    """Accuracy of each strategy under each attack by 4 of 20 devices."""
    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16, np.ones((len(x), 1))])
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:360], np.array_split(order[360:], 20)
    base = tiny_model(folder, 650)
    table: dict[str, dict[str, float]] = {}
    for name in ["fedavg", *ROBUST]:
        strategy = strategy_named(name)
        for attack, change in ATTACKS.items():
            weights = np.zeros((65, 10))
            for _ in range(rounds):
                contents = {}
                for device, mine in enumerate(train):
                    labels = y[mine]
                    if device < 4 and attack == "label flip":
                        labels = 9 - labels
                    delta = _train(weights, x[mine], labels)
                    if device < 4:
                        delta = change(delta)
                    thing = f"d{device:02d}"
                    contents[thing] = update_of(base, thing, delta.ravel().astype(np.float32), num_examples=len(mine))
                found = combine(base, Memory(contents), strategy=strategy).parameters
                assert found is not None
                weights = weights + flat(found).reshape(65, 10)
            table.setdefault(name, {})[attack] = float(((x[test] @ weights).argmax(axis=1) == y[test]).mean())
    return table


def main() -> None:
    """Print the table as docs/strategies.md has it."""
    with tempfile.TemporaryDirectory() as folder:
        table = attack_table(Path(folder))
    print("| |" + "".join(f" {attack} |" for attack in ATTACKS))
    print("|---|" + "---|" * len(ATTACKS))
    for name, found in table.items():
        print(f"| `{name}` |" + "".join(f" {found[attack]:.3f} |" for attack in ATTACKS))


if __name__ == "__main__":
    main()
