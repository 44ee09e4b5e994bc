"""What each device has of a model that is partly its own: the global model, FedBN, a local head, and training alone.

``python -m benchmarks.personal`` trains scikit-learn's digits on 20 virtual devices whose labels differ, in the simulation's
own rounds, and prints one JSON line: of each way the accuracy by device, the median and the mean of the worst tenth, over all
seeds. A device's accuracy is that of what its application would load, on the examples that no device trains on, each label
weighed by the device's own share of it. ``alone`` is the floor: each device trains by itself for as many epochs.

They differ in what is local, and in nothing else: one net with a batch normalization, exported with and without ``local``. The
bounds that protect a fleet from liars are off, and so is the gate. Needs the extra ``authoring``; takes some minutes.
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

from fedgrass.bundle import Bundle, Parameters
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.personal import Own
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.run import simulate
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.virtual_device import own_file

_WAYS: dict[str, tuple[str, ...]] = {"global": (), "fedbn": ("bn",), "local_head": ("head",)}
# No liars here: the bounds and the gate would only change which round is used.
_FLEET = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
}
_RATE = 0.1

Floats = NDArray[np.float64]


def main() -> None:
    """Run what the arguments ask for, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--partitions", nargs="+", default=["shards:2", "dirichlet:0.5"])
    given = parser.parse_args()
    began, found = time.process_time(), {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = exported(Path(folder))
        for partition in given.partitions:
            each: dict[str, list[Floats]] = {}
            for seed in range(given.seeds):
                for way, accuracies in measured(bundles, Path(folder), partition, seed, given).items():
                    each.setdefault(way, []).append(accuracies)
            found[partition] = {way: summary(np.concatenate(some)) for way, some in each.items()}
    options = {name: getattr(given, name) for name in ("devices", "rounds", "epochs", "seeds")}
    print(
        json.dumps(
            {
                "benchmark": "personal",
                **options,
                "accuracy": found,
                "processor_seconds": round(time.process_time() - began),
            }
        )
    )


def exported(folder: Path) -> dict[str, Bundle]:
    """Export the net once for each way."""
    import keras

    from fedgrass.authoring.export import export
    from fedgrass.authoring.quiet import quiet

    layers = keras.layers
    made = {}
    # One model for all ways, so that all start from the same weights.
    with quiet():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, padding="same"),
                layers.BatchNormalization(momentum=0.9),
                layers.Activation("relu"),
                layers.Flatten(),
                layers.Dense(32, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        for way, local in _WAYS.items():
            loss = "sparse_categorical_crossentropy"
            made[way] = export(model, folder / way, loss=loss, batch_size=16, local=local, prove=False)
    return made


def measured(
    bundles: dict[str, Bundle], folder: Path, partition: str, seed: int, given: argparse.Namespace
) -> dict[str, Floats]:
    """Return the accuracy of each device, by way."""
    fit = {"epochs": given.epochs, "learning_rate": _RATE}
    options: dict[str, Any] = {
        "devices": given.devices,
        "cohort": given.devices,
        "rounds": given.rounds,
        "examples": 0,
        "partition": partition,
        "seed": seed,
        "fleet": FleetSettings().overridden({**_FLEET, "fit": fit}),
    }
    found = {}
    for way, bundle in bundles.items():
        output = folder / f"{way}-{partition}-{seed}"
        simulate(output, bundle=bundle.folder, **options)
        # Simulated devices keep their own parameters in a file each, as real ones do.
        final, own = Bundle.open(output / "model"), output / "kept"
        examples = dealt(bundle, options, output)
        models = [
            Own.of(bundle.manifest, own_file(own, device)).over(final.parameters()) for device in range(given.devices)
        ]
        found[way] = np.array([accuracy(bundle, examples, device, model) for device, model in enumerate(models)])
    bundle = bundles["global"]
    examples, engine, alone = dealt(bundle, options, folder), LiteRTEngine(bundle), []
    # By itself: from the same first weights, without any round.
    for device in range(given.devices):
        engine.set_parameters(bundle.parameters())
        # As many epochs as the devices of a federation train in all rounds.
        settings = FitSettings(epochs=given.epochs * given.rounds, learning_rate=_RATE, seed=device)
        alone.append(accuracy(bundle, examples, device, engine.fit(examples.of(device), settings).parameters))
    return {**found, "alone": np.array(alone)}


def dealt(bundle: Bundle, options: dict[str, Any], folder: Path) -> Examples:
    """Return the simulation's own division of the examples."""
    manifest = bundle.manifest
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    scratch = folder / "dealt"
    scratch.mkdir(exist_ok=True)
    return prepare(Simulation.checked({**options, **digests}), manifest, scratch)


def accuracy(bundle: Bundle, examples: Examples, device: int, model: Parameters) -> float:
    """Return the share of right answers on kept-back examples, in the device's own mix of labels."""
    mine = np.concatenate([batch.y for batch in examples.of(device).batches(4096)])
    kept = next(examples.kept.batches(len(examples.kept)))
    engine = LiteRTEngine(bundle)
    engine.set_parameters(model)
    right = np.asarray(engine.infer(np.asarray(kept.x, np.float32)).argmax(axis=1) == kept.y)
    # By the device's own mix of labels: kept-back examples are of all labels alike.
    shares = np.bincount(mine, minlength=10) / len(mine)
    by_label = np.array([right[kept.y == label].mean() for label in range(10)])
    return float(shares @ by_label)


def summary(accuracies: Floats) -> dict[str, float]:
    """Return the median over devices and seeds, and the mean of the worst tenth."""
    ordered = np.sort(accuracies)
    worst = ordered[: max(1, len(ordered) // 10)]
    return {"median": round(float(np.median(ordered)), 4), "worst_tenth": round(float(worst.mean()), 4)}


if __name__ == "__main__":
    main()
