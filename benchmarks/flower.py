"""Flower apps in ``fedgrass flower run`` and in Flower's own simulation: seconds and memory per round, side by side.

``python -m benchmarks.flower`` runs two apps, one of PyTorch and one of scikit-learn (`benchmarks/flower_project`), unchanged in
both, with as many processes each, and prints one line of JSON. A round's seconds are those between the ends of two rounds, as the
app's own server notes them; the first round, which starts processes and loads libraries, is left out. Memory is the largest sum
of PSS (each page that processes share counts once) over the run's processes, sampled; so are the processor's seconds, which say
more than the clock's where others use the machine. ``alone`` is the floor: the apps' own functions one after the other in one
process, with nothing between. It needs ``flwr``, ``torch`` and
``scikit-learn``, and for Flower's side its simulation's backend, ray (``pip install 'flwr[simulation]'``): without it that side
is null, and why is said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.processes import PeakMemory

APPS = Path(__file__).parent / "flower_project"
_OURS = """
import sys
from pathlib import Path
if __name__ == "__main__":
    from fedgrass.simulation.flower.run import run_app
    found = run_app(Path(sys.argv[1]), devices=int(sys.argv[3]), workers=int(sys.argv[4]), said=print)
    assert not found.failed
"""
_ALONE = """
import importlib, sys
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from fedgrass.strategies.arithmetic.flower_trees import identify
    identify()
    client = importlib.import_module(sys.argv[2] + ".client_app")
    import os, benchmarks.flower_server as server
    arrays, devices = client.initial(), int(sys.argv[3])
    for number in range(int(os.environ["ROUNDS"]) + 1):
        server._note(number, arrays)
        for device in range(devices):
            node = {"partition-id": device, "num-partitions": devices}
            context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number + 1})})
            message = Message(content, dst_node_id=1, message_type="train", group_id="1")
            message.metadata.__dict__["_message_id"] = str(device)
            client.app(message, context)
"""
_FLOWERS = """
import importlib, os, sys
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], os.environ.get("PYTHONPATH", "")])
    import ray
    from flwr.simulation import run_simulation
    server = importlib.import_module(sys.argv[2] + ".server_app").app
    client = importlib.import_module(sys.argv[2] + ".client_app").app
    given = {"init_args": {"num_cpus": int(sys.argv[4]), "include_dashboard": False}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, client, int(sys.argv[3]), backend_config=given)
"""


def measured(code: str, app: str, devices: int, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Run an app in a process of its own; returns seconds per round and MB, or what went wrong as ``error``."""
    environment = {**os.environ, "ROUNDS": str(rounds), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(APPS.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        script, log = Path(folder) / "script.py", Path(folder) / "log"
        script.write_text(code)
        argv = [sys.executable, str(script), str(APPS / app), f"{app}_app", str(devices), str(workers)]
        memory = PeakMemory("Pss")
        memory.start()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env={**environment, **memory.environment},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        memory.stop()
        process.wait()
        times = Path(folder) / "times.txt"
        ended = [float(line.split()[1]) for line in times.read_text().splitlines()] if times.exists() else []
        if len(ended) != rounds + 1:
            return {"error": (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:200]}
    gaps = [later - earlier for earlier, later in pairwise(ended[1:])]
    return {
        "seconds_per_round": round(statistics.median(gaps), 4),
        "processor_seconds_per_round": round(memory.spent_between(ended[1], ended[-1]) / len(gaps), 3),
        "peak_mb": round(memory.peak_mb, 1),
    }


def main() -> None:
    """Measure both, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--apps", nargs="*", default=["torch", "sklearn"])
    parser.add_argument("--seconds", type=float, default=300, help="After which a run is given up.")
    given = parser.parse_args()
    found: dict[str, Any] = {"devices": given.devices, "workers": given.workers, "rounds": given.rounds}
    began = time.monotonic()
    for app in given.apps:
        found[app] = {
            name: measured(code, app, given.devices, given.workers, given.rounds, given.seconds)
            for name, code in (("fedgrass", _OURS), ("flower", _FLOWERS), ("alone", _ALONE))
        }
    found["benchmark_seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
