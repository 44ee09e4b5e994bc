"""A paper's table: NIID-Bench on Fashion-MNIST, our strategies beside the published accuracies.

``python -m benchmarks.niid --data DIR`` runs the cells that are not done, each a simulation in a folder of its own under
``--output``, and prints one JSON line with the accuracy of each after its last round, the mean of its last ten, and the processor
hours that it took. Break it off and start it again at will: it goes on after the last whole round. ``--cells fedavg/iid`` chooses
some.

The protocol is Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022,
https://arxiv.org/abs/2102.02079: 10 clients, all in each of 50 rounds, 10 local epochs, batch 64, SGD with rate 0.01 and momentum
0.9, a net of two convolutions; the test set judges. Without the paper's weight decay (1e-5), and with examples divided by
`fedgrass.simulation.partition`. The bounds that protect a fleet from liars are off, and so is the gate. ``published`` is Flower's
reproduction of it (its baseline ``niid_bench``).

``DIR`` holds the four files of Fashion-MNIST, packed as they are distributed: Debian's package ``dataset-fashion-mnist`` has them
in ``/usr/share/datasets/fashion-mnist``. Needs the extra ``authoring``. A cell takes about a processor hour.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lenet import lenet
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.records import SimulatedRound
from fedgrass.simulation.run import simulate
from fedgrass.simulation.store import open_report

_STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"fit": {"proximal_mu": 0.01}},
    "fednova": {},
    "scaffold": {},
    "feddyn": {"strategy": {"options": {"alpha": 0.01}}},
}
_PARTITIONS = {"iid": "iid", "dirichlet": "dirichlet:0.5", "two_labels": "shards:2", "three_labels": "shards:3"}
_PUBLISHED = {
    "fedavg": {"iid": 0.890, "dirichlet": 0.884, "two_labels": 0.810, "three_labels": 0.832},
    "fedprox": {"iid": 0.895, "dirichlet": 0.886, "two_labels": 0.788, "three_labels": 0.825},
    "fednova": {"iid": 0.893, "dirichlet": 0.881, "two_labels": 0.705, "three_labels": 0.832},
    "scaffold": {"iid": 0.895, "dirichlet": 0.884, "two_labels": 0.100, "three_labels": 0.842},
}
# The paper has no liars, no gate and no deadline: what fedgrass has on top is off.
_PLAIN = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "deadline_seconds": 86_400,
}
_LAST = 10


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's four files")
    parser.add_argument(
        "--output", type=Path, default=Path("niid"), help="folder of the cells; what is done stays done"
    )
    cells = [
        f"{strategy}/{partition}"
        for strategy in ("fedavg", "fedprox", "scaffold")
        for partition in list(_PARTITIONS)[:3]
    ]
    known = [f"{strategy}/{partition}" for strategy in _STRATEGIES for partition in _PARTITIONS]
    parser.add_argument("--cells", nargs="+", choices=known, default=cells, metavar="STRATEGY/PARTITION")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes; one for each processor if not given")
    arguments = parser.parse_args()
    _prepare(arguments.data, arguments.output)
    for cell in arguments.cells:
        _run(cell, arguments)
    print(json.dumps({"benchmark": "niid", "rounds": arguments.rounds, "cells": _table(arguments)}))


def _prepare(data: Path, output: Path) -> None:
    """Write the examples as the simulation reads them, and the net, unless they are there."""
    output.mkdir(parents=True, exist_ok=True)
    for name, prefix in (("train", "train"), ("test", "t10k")):
        if not (path := output / f"{name}.npz").exists():
            # Fashion-MNIST's bytes, as 0 to 1 with an axis for the one channel.
            x = _idx(data / f"{prefix}-images-idx3-ubyte.gz")[..., None].astype(np.float32) / 255
            np.savez(path, x=x, y=_idx(data / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32))
    if not (output / "bundle" / "model.json").exists():
        process = multiprocessing.get_context("spawn").Process(target=_export, args=(output / "bundle",))
        process.start()  # TensorFlow's memory goes with it
        process.join()
        if process.exitcode:
            raise SystemExit("the net could not be exported; see above")


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, 8 for bytes, the number of axes, each axis' length, then the values."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, axes = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    if (zeros, kind) != (0, 8) or len(content) != 4 + 4 * axes + math.prod(shape):
        raise SystemExit(f"{path}: is not an IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _export(folder: Path) -> None:
    import keras

    from fedgrass.authoring.export import export

    keras.utils.set_random_seed(0)
    export(
        lenet((28, 28, 1)),
        folder,
        loss="sparse_categorical_crossentropy",
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        batch_size=64,
        name="niid",
    )


def _run(cell: str, arguments: argparse.Namespace) -> None:
    strategy, partition = cell.split("/")
    folder = arguments.output / cell
    changes = _STRATEGIES[strategy]
    # A strategy's own settings last: FedProx's change is to what all have.
    settings = FleetSettings().overridden(_PLAIN).overridden({"strategy": {"name": strategy}}).overridden(changes)
    settings = settings.overridden({"fit": {"epochs": arguments.epochs}})

    def done(simulated: SimulatedRound) -> None:
        found = simulated.report.evaluation
        print(f"{cell} round {simulated.report.round}: {found.accuracy if found else 'no model'}", flush=True)

    with _counted(folder):
        simulate(
            folder,
            bundle=arguments.output / "bundle",
            resume=(folder / "simulation.json").exists(),
            workers=arguments.workers,
            done=done,
            data=str(arguments.output / "train.npz"),
            evaluation=str(arguments.output / "test.npz"),
            partition=_PARTITIONS[partition],
            devices=10,
            cohort=10,
            examples=0,
            rounds=arguments.rounds,
            seed=arguments.seed,
            fleet=settings,
        )


@contextmanager
def _counted(folder: Path) -> Iterator[None]:
    """Add the processor seconds of this process and of those it starts to a cell's, over all of its runs."""
    path, before = folder / "processor.json", _processor_seconds()
    try:
        yield
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        # Also after an interrupt: seconds that were spent are counted.
        path.write_text(json.dumps(_counted_before(folder) + _processor_seconds() - before))


def _counted_before(folder: Path) -> float:
    path = folder / "processor.json"
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def _processor_seconds() -> float:
    # A simulation's workers are children; only those that have ended count.
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _table(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = {}
    for cell in arguments.cells:
        folder, (strategy, partition) = arguments.output / cell, cell.split("/")
        report, rounds = open_report(folder)
        # A round that came to nothing has no evaluation.
        last = [
            r.report.evaluation.accuracy
            for r in rounds[-_LAST:]
            if r.report.evaluation and r.report.evaluation.accuracy
        ]
        found[cell] = {
            "accuracy": report.final.accuracy,
            "mean_of_last_10": round(float(np.mean(last)), 4) if last else None,
            "published": _PUBLISHED.get(strategy, {}).get(partition),
            "processor_hours": round(_counted_before(folder) / 3600, 3),
        }
    return found


if __name__ == "__main__":
    main()
