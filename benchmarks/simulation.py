"""Device-rounds per second of ``fedgrass simulate``, with the real engine and codec, beside Flower's and pfl-research's.

``python -m benchmarks.simulation --peers-python PATH`` runs, each in separate processes, the same workload: digits scaled to
0..1 with 20 % held out; 1,000 virtual devices with 40 examples each drawn by Dirichlet(0.3); a 64-64-10 perceptron; cohorts of
50, two local epochs, batches of 16 with a last short one, SGD 0.1; 20 rounds, the new model evaluated after each. All have the
same cohorts, examples, orders and first parameters, so the L2 norms of what they end with must agree.

PATH is an interpreter with the peers: ``pip install torch "flwr[simulation]" pfl``. pfl runs with one process and with several,
and the faster counts. Besides: start-up seconds, peak memory of all processes of each, memory per 1,000 devices at rest, and a
run with 100,000 devices.
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
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import keep, say
from benchmarks.processes import PeakMemory, memory_mb
from fedgrass.bundle import Bundle
from fedgrass.data.arrays import shuffled
from fedgrass.engines.base import FitSettings
from fedgrass.protocol.messages import Announcement, Base, Upload
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.population import FLEET, Population, thing_name
from fedgrass.simulation.run import simulate
from fedgrass.simulation.settings import Simulation
from fedgrass.training import seed_of

_PEERS = Path(__file__).with_name("simulation_peers.py")
_EPOCHS, _RATE = 2, 0.1
_NORM_TOLERANCE = 1e-4
_MANY = 100_000
_PATIENCE = 180.0  # seconds for one contender


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="of ours and pfl; the fastest counts")
    parser.add_argument("--bundle", type=Path, help="the perceptron; exported if not given, which takes TensorFlow")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with flwr[simulation], pfl and torch")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        found = CONTENDERS[arguments.contender](arguments)
        (arguments.folder / "result.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
        print(json.dumps(measure(Path(folder), arguments)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    arguments.bundle = (arguments.bundle or export(folder / "bundle")).resolve()
    ours = [sys.executable, "-m", "benchmarks.simulation", "--bundle", str(arguments.bundle)]
    ours += ["--workers", str(arguments.workers)]
    usual = ["--devices", str(arguments.devices), "--cohort", str(arguments.cohort), "--rounds", str(arguments.rounds)]
    best: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.repeats):
        keep(best, "ours", _run([*ours, *usual, "--contender", "ours"], folder))
    # pfl alone and under torchrun: which is faster depends on the machine.
    if arguments.peers_python:
        write_work(folder, arguments)
        python = str(arguments.peers_python)
        # A copy, away from this folder: Python looks for `statistics` beside a script before it takes its own.
        peers = str(shutil.copy(_PEERS, folder))
        for _ in range(arguments.repeats):
            keep(best, "pfl", _run([python, peers, "--contender", "pfl"], folder))
            torchrun = [
                python,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(arguments.workers),
            ]
            keep(best, "pfl", _run([*torchrun, peers, "--contender", "pfl"], folder))
        for _ in range(2):
            keep(best, "flower", _run([python, peers, "--contender", "flower"], folder))
    else:
        say("no figures of peers: name an interpreter with --peers-python")
    # The difference of two runs: what does not grow with the devices cancels.
    few, many = (_run([*ours, "--devices", str(n), "--contender", "rest"], folder) for n in (1000, 1000 + _MANY))
    large = _run([*ours, "--devices", str(_MANY), "--cohort", "100", "--rounds", "5", "--contender", "ours"], folder)
    device_rounds = arguments.cohort * arguments.rounds
    speeds = {name: round(device_rounds / found["seconds"], 1) for name, found in best.items()}
    # The same work gives the same model: else one contender was fast by doing less.
    norms = [found["norm"] for found in best.values()]
    deviation = (max(norms) - min(norms)) / norms[0]
    if deviation > _NORM_TOLERANCE:
        say(f"the norms differ by {deviation:.1e}: the contenders did not do the same work")
    return {
        "benchmark": "simulation",
        "devices": arguments.devices,
        "cohort": arguments.cohort,
        "rounds": arguments.rounds,
        "workers": arguments.workers,
        "seconds": {name: round(found["seconds"], 4) for name, found in best.items()},
        "device_rounds_per_second": speeds,
        "ratio_flower": round(speeds["ours"] / speeds["flower"], 2) if "flower" in speeds else None,
        "ratio_pfl": round(speeds["ours"] / speeds["pfl"], 2) if "pfl" in speeds else None,
        "start_seconds": {name: round(found["start_seconds"], 2) for name, found in best.items()},
        "peak_rss_mb": {name: round(found["peak_rss_mb"]) for name, found in best.items()},
        "norm": {name: round(found["norm"], 5) for name, found in best.items()},
        "norms_agree": bool(deviation <= _NORM_TOLERANCE),
        "accuracy": {name: round(found["accuracy"], 4) for name, found in best.items()},
        "mb_per_1000_devices_at_rest": round((many["rss_mb"] - few["rss_mb"]) * 1000 / _MANY, 3)
        if few and many
        else None,
        "with_100000_devices": {
            "rounds": 5,
            "cohort": 100,
            "seconds": round(large["seconds"], 2),
            "start_seconds": round(large["start_seconds"], 2),
            "peak_rss_mb": round(large["peak_rss_mb"]),
        }
        if large
        else None,
    }


def export(folder: Path) -> Path:
    """Export the perceptron, in a separate process: TensorFlow is large."""
    code = (
        "import sys; from pathlib import Path; import keras; from fedgrass.authoring.export import export\n"
        "keras.utils.set_random_seed(1)\n"
        "layers = [keras.Input((64,)), keras.layers.Dense(64, activation='relu', name='hidden'),"
        " keras.layers.Dense(10, activation='softmax', name='digit')]\n"
        "export(keras.Sequential(layers, name='perceptron'), Path(sys.argv[1]),"
        " loss='sparse_categorical_crossentropy', batch_size=16)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
    return folder


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the workload as `simulate` takes it."""
    fleet = FleetSettings().overridden(
        {"fit": {"epochs": _EPOCHS, "learning_rate": _RATE}, "gate": {"tolerance": 1.0}, "deadline_seconds": 3600}
    )
    chosen = {name: getattr(arguments, name) for name in ("devices", "cohort", "rounds")}
    return {**chosen, "partition": "dirichlet:0.3", "examples": 40, "fleet": fleet}


def opened(arguments: argparse.Namespace, folder: Path) -> tuple[Simulation, Bundle, Examples]:
    """Return the simulation, its model, and the examples as they are dealt out."""
    bundle = Bundle.open(arguments.bundle)
    manifest = bundle.manifest
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    simulation = Simulation.checked({**settings(arguments), **digests})
    return simulation, bundle, prepare(simulation, manifest, folder)


def write_work(folder: Path, arguments: argparse.Namespace) -> None:
    """Write what the peers have to do: for each round, device and epoch, which examples in which order."""
    simulation, bundle, examples = opened(arguments, folder)
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
        devices=simulation.devices,
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


def run_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulate as the command line does."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as output:
        report = simulate(Path(output), bundle=arguments.bundle, workers=arguments.workers, **settings(arguments))
        final = Bundle.open(Path(output) / "model").parameters().values()
    squares = sum(float((value.astype(np.float64) ** 2).sum()) for value in final)
    timing = report.timing
    return {
        "ready_at": timing.ready_at,
        "seconds": timing.seconds,
        "norm": float(np.sqrt(squares)),
        "accuracy": report.final.accuracy,
    }


def run_rest(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hold the examples of devices that do nothing."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
        held = opened(arguments, Path(folder))
        found = {"rss_mb": memory_mb(os.getpid()), "seconds": 0.0, "ready_at": time.time()}
        del held
    return found


CONTENDERS = {"ours": run_ours, "rest": run_rest}


def _run(command: list[str], folder: Path) -> dict[str, Any] | None:
    """Run a contender and return what it wrote, with its start-up and the peak memory of all its processes."""
    memory = PeakMemory()
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
    found |= {"peak_rss_mb": memory.peak_mb, "start_seconds": found["ready_at"] - began}
    say(f"{command[-1]}: {found}")
    return found


if __name__ == "__main__":
    main()
