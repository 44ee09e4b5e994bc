"""Flower's public example apps, unchanged, by ``fedgrass flower run``: which run, what they take, and why the others do not.

``python -m benchmarks.flower_apps CHECKOUT`` takes a checkout of https://github.com/adap/flower that the user has, and runs each
app of its ``examples`` in a process of its own, one round on two virtual devices. Data sets are made up where ``datasets``,
``flwr_datasets`` and ``torchvision`` are not installed (`benchmarks/flower_stand_ins`), so that nothing is downloaded: what is
tried is the app's code, not how well it learns. With ``--fleet`` each app runs by ``fedgrass flower run --fleet`` on core devices
of a local fleet instead (`benchmarks.flower_fleet`). ``--packages`` names folders of packages that apps need and this environment
lacks. With ``--results FILE`` each outcome is a line of that file, and what is there already is not run again; ``--table`` prints
a table, else it is one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.flower_fleet import AppFleet

_WHERE = re.compile(r"/\S*(?=examples/)|(?<=\()/\S*site-packages/|\x1b\[\d+m|^configuration: ")
"""What of an outcome is of this machine alone."""
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


def folders(packages: list[str]) -> list[str]:
    """Return the folders of packages that apps need: the stand-ins, those that are given, and this environment's."""
    missing = [name for name in ("datasets", "flwr_datasets", "torchvision") if importlib.util.find_spec(name) is None]
    installed = [entry for entry in sys.path if entry.endswith("-packages")]
    return [*([str(STAND_INS)] if missing else []), *packages, *installed]


def tried(app: Path, devices: int, seconds: float) -> dict[str, Any]:
    """Run an app in a folder of its own; returns what came of it, or ``error``."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
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
    """Return in words what came of an app, as a table has it."""
    return _WHERE.sub("", _in_words(found)).replace("|", "/").replace("\n", " ")[:240]


def _in_words(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    if "version" not in found:
        failed = f", {found['failed']} messages failed: {found['said']}" if found["failed"] else ""
        return f"runs: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MB{failed}"
    if "1" not in found["trained"]:
        lines = [line for line in found["said"].splitlines() if line.startswith("Round 1 of")]
        return f"no figures of training: {(lines or ['nothing was said'])[0]}"
    figures = {**found["trained"]["1"], **found["evaluated"].get("1", {}), **found["judged"].get("1", {})}
    told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, float))
    return f"runs: {found['seconds']:.0f} s; {told}"


def once(app: Path) -> dict[str, Any]:
    """Return the settings by which an app runs one round, of those that it has."""
    from fedgrass.engines.flower_project import Project

    known = Project.read(app, {}).run_config
    return {name: 1 for name in ("num-server-rounds", "num-rounds", "local-epochs") if name in known}


@contextmanager
def runner(arguments: argparse.Namespace, packages: list[str]) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Give what runs an app: virtual devices, or a local fleet."""
    if not arguments.fleet:
        yield lambda app: tried(app, arguments.devices, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as folder, AppFleet(Path(folder), packages, arguments.devices) as fleet:

        def timed(app: Path) -> dict[str, Any]:
            began = time.monotonic()
            found = fleet.run(app, once(app), arguments.seconds)
            return {**found, "seconds": round(time.monotonic() - began, 1)}

        yield timed


def main() -> None:
    """Try them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--apps", nargs="*", default=[], help="Names below examples/; all if none are given.")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="After which an app is given up.")
    parser.add_argument("--fleet", action="store_true", help="On core devices of a local fleet.")
    parser.add_argument("--packages", nargs="*", default=[], help="Folders of packages that apps need.")
    parser.add_argument("--results", type=Path, help="File to which each outcome is added.")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    packages = folders([str(Path(one).resolve()) for one in arguments.packages])
    # For this process, which reads apps' settings, and for those that it starts.
    sys.path.extend(packages)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *packages])
    found = outcomes(arguments.results)
    every = sorted(path.parent for path in (arguments.checkout / "examples").glob("*/pyproject.toml"))
    wanted = [app for app in every if not arguments.apps or app.name in arguments.apps]
    with runner(arguments, packages) as run:
        for app in wanted:
            if app.name not in found:
                found[app.name] = run(app)
                if arguments.results:
                    with arguments.results.open("a") as stream:
                        stream.write(json.dumps({"app": app.name, **found[app.name]}) + "\n")
            if arguments.table:
                print(f"| {app.name} | {verdict(found[app.name])} |", flush=True)
    if not arguments.table:
        print(json.dumps(found))


def outcomes(file: Path | None) -> dict[str, dict[str, Any]]:
    """Return what a file of results has, by app; the last of each."""
    if file is None or not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {str(line.pop("app")): line for line in lines}


if __name__ == "__main__":
    main()
