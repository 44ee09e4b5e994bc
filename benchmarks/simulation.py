"""Processor time of ``fedgrass simulate``, with the real engine and checks, beside Flower's and pfl-research's simulations.

``python -m benchmarks.simulation --peers-python PATH`` runs, each in separate processes, the same work.

- ``w1``: the digits scaled to 0..1 with 20 % held out, 1,000 virtual devices with 40 examples each drawn by Dirichlet(0.3), a
  64-64-10 perceptron, cohorts of 50, 20 rounds.
- ``w2``: a 784-128-10 perceptron (``--inputs`` and ``--hidden`` make another) on 200 examples of each device.
- ``million``: ours alone, with a million devices of which each of ten rounds asks 1,000.

Two local epochs, batches of 16 with a last short one, SGD 0.1, the new model evaluated after each round. All have the same
cohorts, examples, orders and first parameters, so the L2 norms of what they end with must agree.

PATH is an interpreter with the peers: ``pip install torch "flwr[simulation]" pfl``. pfl runs with one process and with several,
and what took less counts. Processor time is that of all processes from the first round's beginning to the last one's end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import keep, say
from benchmarks.processes import PeakMemory
from fedgrass.bundle import Bundle
from fedgrass.data.arrays import shuffled
from fedgrass.engines.base import FitSettings
from fedgrass.fitting import seed_of
from fedgrass.protocol.messages import Announcement, Base, Upload
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.population import FLEET, Population, thing_name
from fedgrass.simulation.run import simulate
from fedgrass.simulation.settings import Simulation

_PEERS = Path(__file__).with_name("simulation_peers.py")
_EPOCHS, _RATE = 2, 0.1
_NORM_TOLERANCE = 1e-4
_PATIENCE = 300.0  # seconds for one contender


@dataclass(frozen=True)
class Work:
    """A workload: a perceptron of ``inputs``, ``hidden`` and ten scalars, and who trains it on how many examples."""

    inputs: int
    hidden: int
    examples: int
    devices: int
    cohort: int
    rounds: int

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return it as `simulate` takes it."""
        fleet = FleetSettings().overridden(
            {"fit": {"epochs": _EPOCHS, "learning_rate": _RATE}, "gate": {"tolerance": 1.0}, "deadline_seconds": 3600}
        )
        chosen = {name: getattr(self, name) for name in ("devices", "cohort", "rounds", "examples")}
        return {**chosen, "partition": "dirichlet:0.3", "fleet": fleet, "data": self._data(folder)}

    def _data(self, folder: Path) -> str:
        """Return the file of examples; nothing for the digits."""
        if self.inputs == 64:
            return ""
        path = folder / f"blobs-{self.inputs}.npz"
        if not path.exists():
            rng = np.random.default_rng(0)
            y = rng.integers(0, 10, 4000).astype(np.int32)
            # Dim, as most pixels of written figures are: a rate of 0.1 would make bright ones jump, and rounding with them.
            x = 0.1 * (rng.random((10, self.inputs), np.float32)[y] + 3 * rng.random((4000, self.inputs), np.float32))
            np.savez(path, x=x, y=y)
        return str(path)

    def bundle(self, folder: Path) -> Path:
        """Export the perceptron once, in a separate process: TensorFlow is large."""
        path = folder / f"bundle-{self.inputs}-{self.hidden}"
        if not path.exists():
            given = [sys.executable, "-c", _EXPORT, str(path), str(self.inputs), str(self.hidden)]
            subprocess.run(given, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        return path


_EXPORT = """
import sys; from pathlib import Path; import keras; from fedgrass.authoring.export import export
keras.utils.set_random_seed(1)
layers = [keras.Input((int(sys.argv[2]),)), keras.layers.Dense(int(sys.argv[3]), activation='relu', name='hidden'),
          keras.layers.Dense(10, activation='softmax', name='digit')]
export(keras.Sequential(layers, name='perceptron'), Path(sys.argv[1]),
       loss='sparse_categorical_crossentropy', batch_size=16)
"""
WORKS = {
    "w1": Work(inputs=64, hidden=64, examples=40, devices=1000, cohort=50, rounds=20),
    "w2": Work(inputs=784, hidden=128, examples=200, devices=200, cohort=20, rounds=10),
    "million": Work(inputs=64, hidden=64, examples=40, devices=1_000_000, cohort=1000, rounds=10),
}


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="of ours and pfl; the fastest counts")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with flwr[simulation], pfl and torch")
    parser.add_argument("--hidden", type=int, help="another width of w2's hidden layer")
    parser.add_argument("--inputs", type=int, help="another width of w2's inputs")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    changes = {name: value for name in ("inputs", "hidden") if (value := getattr(arguments, name)) is not None}
    works = {name: replace(WORKS[name], **changes) if name == "w2" else WORKS[name] for name in arguments.works}
    if arguments.contender:
        (work,) = works.values()
        (arguments.folder / "result.json").write_text(json.dumps(run_ours(work, arguments.folder, arguments.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as name:
        folder = Path(name)
        found = {which: measure(folder, which, work, changes, arguments) for which, work in works.items()}
    print(json.dumps({"benchmark": "simulation", "workers": arguments.workers, **found}))


def measure(
    folder: Path, which: str, work: Work, changes: dict[str, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return a workload's figures."""
    work.bundle(folder)
    ours = [sys.executable, "-m", "benchmarks.simulation", "--works", which, "--workers", str(arguments.workers)]
    ours += [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    best: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.repeats if which != "million" else 1):
        keep(best, "ours", _run([*ours, "--contender", "ours"], folder), by="processor_seconds")
    if which == "million":
        say("no peer is given a million devices: each holds them as objects")
    elif arguments.peers_python:
        _measure_peers(folder, work, arguments, best)
    else:
        say("no figures of peers: name an interpreter with --peers-python")
    norms = [found["norm"] for found in best.values()]
    # The same work gives the same model: else one contender was fast by doing less.
    deviation = (max(norms) - min(norms)) / norms[0]
    if deviation > _NORM_TOLERANCE:
        say(f"the norms differ by {deviation:.1e}: the contenders did not do the same work")
    device_rounds = work.cohort * work.rounds
    figures: dict[str, Any] = {
        name: {
            "processor_seconds": round(found["processor_seconds"], 3),
            "us_per_device_round": round(found["processor_seconds"] / device_rounds * 1e6, 1),
            "seconds": round(found["seconds"], 3),
            "start_seconds": round(found["start_seconds"], 2),
            "peak_rss_mb": round(found["peak_rss_mb"]),
            "norm": round(found["norm"], 5),
            "accuracy": round(found["accuracy"], 4),
        }
        for name, found in best.items()
    }
    spent = {name: found["processor_seconds"] for name, found in best.items()}
    return {
        **asdict(work),
        **figures,
        **{f"times_{name}": round(spent[name] / spent["ours"], 1) for name in spent if name != "ours"},
        "norms_agree": bool(deviation <= _NORM_TOLERANCE),
    }


def _measure_peers(folder: Path, work: Work, arguments: argparse.Namespace, best: dict[str, dict[str, Any]]) -> None:
    write_work(folder, work)
    python, workers = str(arguments.peers_python), str(arguments.workers)
    # A copy, away from this folder: Python looks for `statistics` beside a script before it takes its own.
    peers = str(shutil.copy(_PEERS, folder))
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", workers]
    # pfl alone and under torchrun: which takes less depends on the machine.
    for _ in range(arguments.repeats):
        for start in ([python], torchrun):
            keep(best, "pfl", _run([*start, peers, "--contender", "pfl"], folder), by="processor_seconds")
    keep(best, "flower", _run([python, peers, "--contender", "flower"], folder), by="processor_seconds")


def opened(work: Work, folder: Path, scratch: Path) -> tuple[Simulation, Bundle, Examples]:
    """Return the simulation, its model, and the examples as they are dealt out."""
    bundle = Bundle.open(work.bundle(folder))
    manifest = bundle.manifest
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    simulation = Simulation.checked({**work.settings(folder), **digests})
    return simulation, bundle, prepare(simulation, manifest, scratch)


def write_work(folder: Path, work: Work) -> None:
    """Write what the peers have to do: for each round, device and epoch, which examples in which order."""
    simulation, bundle, examples = opened(work, folder, folder)
    world, rows = Population(simulation), []
    for number in [1, *range(1, simulation.rounds + 1)]:  # the first is the warm-up
        cohort, asked = world.cohort(number)
        announced = _announced(bundle, number, cohort)
        rows.append([_orders(examples, announced, device) for device in asked])
    every = examples.source.read(np.arange(len(examples.source)))
    kept = next(examples.kept.batches(len(examples.kept)))
    given: dict[str, Any] = dict(zip(("w0", "b0", "w1", "b1"), bundle.parameters().values(), strict=True))
    np.savez(
        folder / "work.npz",
        x=every.x,
        y=every.y.astype(np.int64),
        kept_x=kept.x,
        kept_y=kept.y.astype(np.int64),
        examples=np.array(rows, np.int64),
        devices=work.devices,
        learning_rate=_RATE,
        batch_size=bundle.manifest.batch_size,
        **given,
    )


def _orders(examples: Examples, announced: Announcement, device: int) -> list[Any]:
    indices = examples.partition.of(device)
    fit = FitSettings(seed=seed_of(announced, thing_name(device)))
    epochs = (shuffled(len(indices), fit.epoch_seed(epoch)) for epoch in range(_EPOCHS))
    return [indices[order] for order in epochs]


def _announced(bundle: Bundle, number: int, cohort: Any) -> Announcement:
    now, manifest = datetime(2000, 1, 1, tzinfo=timezone.utc), bundle.manifest
    base = Base(
        version="1.0.0",
        parameters_key="base",
        parameters_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
    )
    upload = Upload(bucket=FLEET, prefix="updates")
    return Announcement(
        fleet=FLEET,
        round=number,
        opened_at=now,
        deadline=now + timedelta(hours=1),
        base=base,
        cohort=cohort,
        upload=upload,
    )


def run_ours(work: Work, folder: Path, workers: int) -> dict[str, Any]:
    """Simulate as the command line does."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as output:
        report = simulate(Path(output), bundle=work.bundle(folder), workers=workers, **work.settings(folder))
        final = Bundle.open(Path(output) / "model").parameters().values()
    squares = sum(float((value.astype(np.float64) ** 2).sum()) for value in final)
    timing = report.timing
    return {
        "ready_at": timing.ready_at,
        "seconds": timing.seconds,
        "processor_seconds": timing.processor_seconds,
        "norm": float(np.sqrt(squares)),
        "accuracy": report.final.accuracy,
    }


def _run(command: list[str], folder: Path) -> dict[str, Any] | None:
    """Run a contender and return what it wrote, with its start-up and the peak memory of all its processes."""
    memory = PeakMemory()
    clocks = time.monotonic() - time.time()
    (folder / "result.json").unlink(missing_ok=True)
    began = time.time()
    process = subprocess.Popen(
        [*command, "--folder", str(folder)],
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **memory.environment},
    )
    memory.start()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
    memory.stop()
    process.wait()
    if not (folder / "result.json").exists():
        say(f"{command}: failed with {process.returncode}")
        return None
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    # Ours counts exactly; what samples tell to 0.2 s is enough of peers.
    began_at = found["ready_at"] + clocks
    found.setdefault("processor_seconds", memory.spent_between(began_at, began_at + found["seconds"]))
    found |= {"peak_rss_mb": memory.peak_mb, "start_seconds": found["ready_at"] - began}
    say(f"{command[-1]}: {found}")
    return found


if __name__ == "__main__":
    main()
