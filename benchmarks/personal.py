"""What models of their own bring devices: the global model, FedBN, a local head, FedRep, fine-tuning, Ditto, training alone.

``python -m benchmarks.personal`` trains scikit-learn's digits on 20 virtual devices, in the simulation's own rounds, and prints
one JSON line: of each way the accuracy by device, the median and the mean of the worst tenth, over all seeds. The devices' labels
differ (``shards:2``, ``dirichlet:0.5``), or all have all labels, and each its digits turned by none to three right angles
(``turned``). A device's accuracy is that of what its application would load, on the examples that no device trains on, turned as
its own, each label weighed by the device's own share of it. ``alone`` is the floor: each device trains by itself for as many
epochs.

``fine_tuned`` and ``ditto`` are of one run: what the last round's training made of its base, and the second model. ``chosen`` is
the best of these and of the global model on each device's kept-back fifth, as a device chooses; in every way devices train on the
other four. The ways differ in what is local, and in nothing else: one net with a batch normalization. The bounds that protect a
fleet from liars are off, and so is the gate. Needs the extra ``authoring``; takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Bundle, Parameters
from fedgrass.engines.base import Batch, Dataset, FitResult, FitSettings, FitState, Hooks, Measured
from fedgrass.engines.flower_node import PARTITION, Node
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.personal import Own
from fedgrass.personal_models import PersonalModels
from fedgrass.protocol.gain import best_of
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.run import simulate
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.virtual_device import own_file, personal_folder
from fedgrass.tensors import Array

_LOCAL: dict[str, tuple[str, ...]] = {"global": (), "fedbn": ("bn",), "local_head": ("head",)}
_TURNED = "turned"
# No liars here: the bounds and the gate would only change which round is used.
_FLEET = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
}
_RATE = 0.1

Floats = NDArray[np.float64]


class Turning(LiteRTEngine):
    """Sees each virtual device's digits turned by its number's right angles; as nobody it sees them as they are."""

    node: Node | None = None

    @property
    def _turns(self) -> int:
        return 0 if self.node is None else int(self.node.config[PARTITION])

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        """Train on the turned examples."""
        return super().fit(_Turned(data, self._turns), settings, hooks=hooks, resume=resume)

    def evaluate(self, data: Dataset) -> Measured:
        """Judge on them."""
        return super().evaluate(_Turned(data, self._turns))


class _Turned:
    def __init__(self, data: Dataset, turns: int) -> None:
        self._data, self._turns = data, turns

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        for batch in self._data.batches(batch_size, seed=seed):
            yield replace(batch, x=turned(batch.x, self._turns))


def turned(x: Array, turns: int) -> Array:
    """Turn images [n, height, width, 1] by right angles."""
    return np.ascontiguousarray(np.rot90(x, turns, axes=(1, 2)))


def main() -> None:
    """Run what the arguments ask for, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--partitions", nargs="+", default=["shards:2", "dirichlet:0.5", _TURNED])
    parser.add_argument("--strength", type=float, default=0.1, help="Ditto's lambda")
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
    options = {name: getattr(given, name) for name in ("devices", "rounds", "epochs", "seeds", "strength")}
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
        for way, local in _LOCAL.items():
            loss = "sparse_categorical_crossentropy"
            made[way] = export(model, folder / way, loss=loss, batch_size=16, local=local, prove=False)
    return made


def measured(
    bundles: dict[str, Bundle], folder: Path, partition: str, seed: int, given: argparse.Namespace
) -> dict[str, Floats]:
    """Return the accuracy of each device, by way."""
    turns = partition == _TURNED
    options: dict[str, Any] = {
        "devices": given.devices,
        "cohort": given.devices,
        "rounds": given.rounds,
        "examples": 0,
        "partition": "iid" if turns else partition,
        "validation": 0.2,
        "seed": seed,
        "engine": "benchmarks.personal:Turning" if turns else "litert",
    }
    devices = range(given.devices)
    examples = dealt(bundles["global"], {**options, "fleet": FleetSettings()}, folder)

    def judged(bundle: Bundle, models: list[Parameters]) -> Floats:
        return np.array([accuracy(bundle, examples, d, models[d], turns=d * turns) for d in devices])

    def trained(way: str, bundle: Bundle, **changes: Any) -> tuple[Path, list[Parameters]]:
        fit = {"epochs": given.epochs, "learning_rate": _RATE, **changes.pop("fit", {})}
        output = folder / f"{way}-{partition}-{seed}"
        fleet = FleetSettings().overridden({**_FLEET, "fit": fit, **changes})
        simulate(output, bundle=bundle.folder, fleet=fleet, **options)
        final = Bundle.open(output / "model").parameters()
        # Simulated devices keep their own parameters in a file each, as real ones do.
        return output / "kept", [Own.of(bundle.manifest, own_file(output / "kept", d)).over(final) for d in devices]

    found = {}
    for way in ("fedbn", "local_head"):
        found[way] = judged(bundles[way], trained(way, bundles[way])[1])
    head = {"local_epochs": given.epochs}
    found["fedrep"] = judged(bundles["local_head"], trained("fedrep", bundles["local_head"], fit=head)[1])
    bundle = bundles["global"]
    # The shared model is the same bytes with and without Ditto.
    kept, shared = trained("ditto", bundle, personal={"mode": "ditto", "strength": given.strength})
    own = [PersonalModels(personal_folder(kept, device), bundle.manifest).read() for device in devices]
    each = [{"global": shared[d], "fine_tuned": own[d]["tuned"], "ditto": own[d]["ditto"]} for d in devices]
    for way in each[0]:
        found[way] = judged(bundle, [models[way] for models in each])
    found["chosen"] = judged(bundle, [chosen(bundle, examples, d, each[d], turns=d * turns) for d in devices])
    # By itself: from the same first weights, without any round.
    return {**found, "alone": judged(bundle, [alone(bundle, examples, d, given, turns=d * turns) for d in devices])}


def alone(bundle: Bundle, examples: Examples, device: int, given: argparse.Namespace, *, turns: int) -> Parameters:
    """Train one device for as many epochs as the devices of a federation in all rounds."""
    settings = FitSettings(epochs=given.epochs * given.rounds, learning_rate=_RATE, seed=device)
    return LiteRTEngine(bundle).fit(_Turned(examples.of(device), turns), settings).parameters


def chosen(bundle: Bundle, examples: Examples, device: int, models: dict[str, Parameters], *, turns: int) -> Parameters:
    """Return the model that the device would choose, on what it keeps back."""
    engine, found = LiteRTEngine(bundle), {}
    for way, parameters in models.items():
        engine.set_parameters(parameters)
        found[way] = engine.evaluate(_Turned(examples.held_back(device), turns))
    values, losses = ({way: one[figure] for way, one in found.items()} for figure in ("accuracy", "loss"))
    return models[best_of(values, "accuracy", losses)]


def dealt(bundle: Bundle, options: dict[str, Any], folder: Path) -> Examples:
    """Return the simulation's own division of the examples."""
    manifest = bundle.manifest
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    scratch = folder / "dealt"
    scratch.mkdir(exist_ok=True)
    return prepare(Simulation.checked({**options, **digests}), manifest, scratch)


def accuracy(bundle: Bundle, examples: Examples, device: int, model: Parameters, *, turns: int = 0) -> float:
    """Return the share of right answers on kept-back examples, in the device's own mix of labels."""
    mine = np.concatenate([batch.y for batch in examples.of(device).batches(4096)])
    kept = next(examples.kept.batches(len(examples.kept)))
    engine = LiteRTEngine(bundle)
    engine.set_parameters(model)
    right = np.asarray(engine.infer(turned(np.asarray(kept.x, np.float32), turns)).argmax(axis=1) == kept.y)
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
