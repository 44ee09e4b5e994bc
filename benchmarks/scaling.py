"""Inputs of very unlike scales: a model as it is, scaled by the fleet's profile, by each device's own data, and all in one place.

``python -m benchmarks.scaling`` trains one small net that begins with a normalization on scikit-learn's breast cancer data, whose
30 features lie between 0.001 and 4,000, on 10 virtual devices whose labels differ (``dirichlet:0.5``), in the simulation's own
rounds. ``profile`` is `fedgrass.adapt` by a simulated round of statistics; ``each_its_own`` scales each device's rows by that
device's mean and deviation, as a device does that knows no other, and the kept-back rows by the average device's; ``central`` is
Keras, adapted and trained on the same rows in one place for as many epochs. Accuracy on the kept-back fifth, by seed. One JSON
line. Needs the extra ``authoring``; less than a processor minute.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.personal import dealt
from fedgrass.bundle import Bundle
from fedgrass.data.arrays import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.profile.adapt import adapt
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.examples import Examples
from fedgrass.simulation.profiling import simulate_profile
from fedgrass.simulation.run import simulate

Floats = NDArray[np.float32]

# No liars here: the bounds and the gate would only change which round is used.
_FLEET = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
}


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    began = time.process_time()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as scratch:
        folder = Path(scratch)
        _write_data(folder / "data.npz")
        raw = _exported(folder / "raw")
        for seed in range(given.seeds):
            place = folder / str(seed)
            place.mkdir()
            for way, accuracy in _measured(raw, folder / "data.npz", place, seed, given).items():
                found.setdefault(way, []).append(round(accuracy, 4))
    print(
        json.dumps(
            {
                "benchmark": "scaling",
                **vars(given),
                "accuracy": found,
                "mean": {way: round(float(np.mean(each)), 4) for way, each in found.items()},
                "processor_seconds": round(time.process_time() - began),
            }
        )
    )


def _write_data(path: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    np.savez(path, x=data.data.astype(np.float32), y=data.target.astype(np.int32))


def _exported(folder: Path) -> Bundle:
    import keras

    from fedgrass.authoring.export import export
    from fedgrass.authoring.quiet import quiet

    with quiet():
        keras.utils.set_random_seed(0)
        return export(_net(keras), folder, loss="sparse_categorical_crossentropy", batch_size=16, prove=False)


def _net(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((30,)),
            layers.Normalization(),
            layers.Dense(16, activation="relu"),
            layers.Dense(2, activation="softmax"),
        ]
    )


def _measured(raw: Bundle, data: Path, folder: Path, seed: int, given: argparse.Namespace) -> dict[str, float]:
    options: dict[str, Any] = {
        "devices": given.devices,
        "cohort": given.devices,
        "examples": 0,
        "partition": "dirichlet:0.5",
        "data": str(data),
        "seed": seed,
    }
    profile = simulate_profile(raw.folder, folder / "profile.json", **options)
    adapted = adapt(raw, profile, folder / "adapted")
    fit = {"epochs": given.epochs, "learning_rate": given.rate}
    rounds = {**options, "rounds": given.rounds, "fleet": FleetSettings().overridden({**_FLEET, "fit": fit})}
    examples = dealt(raw, rounds, folder)
    kept = next(examples.kept.batches(len(examples.kept)))
    x, y = np.asarray(kept.x, np.float32), np.asarray(kept.y)

    def accuracy(bundle: Bundle, output: Path, given_x: Floats) -> float:
        engine = LiteRTEngine(bundle)
        engine.set_parameters(Bundle.open(output / "model").parameters())
        return float((engine.infer(given_x).argmax(axis=1) == y).mean())

    found = {}
    for way, bundle in (("raw", raw), ("profile", adapted)):
        simulate(folder / way, bundle=bundle.folder, **rounds)
        found[way] = accuracy(bundle, folder / way, x)
    found["each_its_own"] = _each_its_own(raw, examples, given, x, y)
    found["central"] = _central(examples, given, seed, x, y)
    return found


def _rows(examples: Examples, device: int) -> tuple[Floats, NDArray[np.int32]]:
    batches = list(examples.of(device).batches(4096))
    return np.concatenate([b.x for b in batches]).astype(np.float32), np.concatenate([b.y for b in batches])


def _each_its_own(raw: Bundle, examples: Examples, given: argparse.Namespace, x: Floats, y: NDArray[np.int32]) -> float:
    """Average by examples, round after round, models that devices trained on rows scaled by their own mean and deviation."""
    engine, parts, scales = LiteRTEngine(raw), [], []
    for device in range(given.devices):
        own, labels = _rows(examples, device)
        # A feature that is the same in all of a device's rows has no deviation to divide by.
        mean, deviation = own.mean(axis=0), np.maximum(own.std(axis=0), 1e-6)
        parts.append(ArrayDataset((own - mean) / deviation, labels))
        scales.append((mean, deviation))
    weights = np.array([len(part) for part in parts]) / sum(map(len, parts))
    model = raw.parameters()
    for number in range(given.rounds):
        after = []
        for device, part in enumerate(parts):
            engine.set_parameters(model)
            settings = FitSettings(given.epochs, given.rate, seed=number * given.devices + device)
            after.append(engine.fit(part, settings).parameters)
        model = {name: sum(w * one[name] for w, one in zip(weights, after, strict=True)) for name in model}
        model = {name: np.asarray(value, np.float32) for name, value in model.items()}
    engine.set_parameters(model)
    # A scale for new rows: no device's own fits them, so it is the mean of all.
    mean, deviation = (sum(w * one[at] for w, one in zip(weights, scales, strict=True)) for at in range(2))
    return float((engine.infer(((x - mean) / deviation).astype(np.float32)).argmax(axis=1) == y).mean())


def _central(examples: Examples, given: argparse.Namespace, seed: int, x: Floats, y: NDArray[np.int32]) -> float:
    import keras

    rows = [_rows(examples, device) for device in range(given.devices)]
    own, labels = (np.concatenate([part[at] for part in rows]) for at in range(2))
    keras.utils.set_random_seed(seed)
    net = _net(keras)
    # What a profile stands in for: all rows in one place.
    net.layers[0].adapt(own)
    net.compile(keras.optimizers.SGD(given.rate), "sparse_categorical_crossentropy")
    net.fit(own, labels, batch_size=16, epochs=given.epochs * given.rounds, verbose=0)
    return float((net.predict(x, verbose=0).argmax(axis=1) == y).mean())


if __name__ == "__main__":
    main()
