"""Flower's public example apps, unchanged, by ``fedgrass flower run``: which run, what they take, and why the others do not.

``python -m benchmarks.flower_apps CHECKOUT`` takes a checkout of https://github.com/adap/flower that the user has, and runs each
app of its ``examples`` in a process of its own, one round on two virtual devices. Data sets are made up where ``datasets``,
``flwr_datasets`` and ``torchvision`` are not installed (`benchmarks/flower_stand_ins`), so that nothing is downloaded: what is
tried is the app's code, not how well it learns. It prints one line of JSON, or with ``--table`` a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAND_INS = Path(__file__).parent / "flower_stand_ins"
_CODE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
if __name__ == "__main__":
    from fedgrass.errors import FedgrassError
    from fedgrass.engines.flower_project import Project
    from fedgrass.simulation.flower.run import run_app
    folder = Path(sys.argv[1])
    try:
        known = Project.read(folder, {}).run_config
        given = {name: 1 for name in ("num-server-rounds", "num-rounds", "local-epochs") if name in known}
        said = []
        found = asdict(run_app(folder, devices=int(sys.argv[2]), workers=1, run_config=given, said=said.append))
        found["said"] = said[0].strip().splitlines()[-1] if said else ""
    except FedgrassError as error:
        found = {"error": str(error)}
    print("\\n" + json.dumps(found))
"""


def tried(app: Path, devices: int, seconds: float) -> dict[str, Any]:
    """Run an app in a folder of its own; returns what came of it, or ``error``."""
    missing = [name for name in ("datasets", "flwr_datasets", "torchvision") if importlib.util.find_spec(name) is None]
    path = [os.getcwd(), *([str(STAND_INS)] if missing else []), *filter(None, [os.environ.get("PYTHONPATH")])]  # noqa: PTH109
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "FLWR_TELEMETRY_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run_app.py"
        script.write_text(_CODE)
        argv = [sys.executable, str(script), str(app.resolve()), str(devices)]
        try:
            done = subprocess.run(
                argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:g} s"}
    # The app may print, too; the last line is ours.
    lines = done.stdout.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return found


def verdict(found: dict[str, Any]) -> str:
    """Return in words what came of an app."""
    if "error" in found:
        return str(found["error"]).rpartition("examples/")[2].replace("|", "/")[:160]
    if found["failed"]:
        return f"runs, {found['failed']} messages failed: {found['said']}"[:160]
    return f"runs: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MB"


def main() -> None:
    """Try them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--apps", nargs="*", default=[], help="Names below examples/; all if none are given.")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="After which an app is given up.")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    every = sorted(path.parent for path in (arguments.checkout / "examples").glob("*/pyproject.toml"))
    found = {}
    for app in every:
        if not arguments.apps or app.name in arguments.apps:
            found[app.name] = tried(app, arguments.devices, arguments.seconds)
            if arguments.table:
                print(f"| {app.name} | {verdict(found[app.name])} |", flush=True)
    if not arguments.table:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
