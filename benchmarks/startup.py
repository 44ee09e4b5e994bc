"""What it costs to start: processor time of components, command line and functions, and the size of the functions' archive.

``python -m benchmarks.startup`` starts each in a process of its own, in turns, and keeps the least processor time of several; the
table goes to standard error, one line of JSON to standard output. A function's figure is Lambda's init phase as far as it is
Python's: its module with all that it imports, and the clients that it makes then; without awscrt, which Lambda does not have.
``fedgrass fleet list`` asks an endpoint that refuses at once, so no network is waited for. Needs the extra ``local``.
``--dependencies`` packs the functions' third-party wheels too, which pip gets from its index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.paired import say
from fedgrass.checkout import checkout
from fedgrass.cloud.infrastructure.package import functions_archive

_PYTHON = "python itself"
_SETTINGS = ("FLEET", "ACCOUNT", "BUCKET", "ROUNDS_TABLE", "DEVICES_TABLE")
_AS_LAMBDA = (
    "import os, sys; sys.modules['awscrt'] = None; os.environ['AWS_LAMBDA_FUNCTION_NAME'] = 'function'; "
    f"os.environ.update(dict.fromkeys(('FEDGRASS_' + name for name in {_SETTINGS}), 'name'))"
)
_COMMAND = "import sys; sys.argv[0] = 'fedgrass'; from fedgrass.cli import app; app()"


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dependencies", action="store_true", help="pack the functions' wheels too")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments)))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    commands = started()
    best: dict[str, float] = {}
    # In turns: another program's load falls on all of them.
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            best[name] = min(best.get(name, float("inf")), _processor_seconds(command))
    for name, seconds in best.items():
        say(f"{seconds:6.3f} s  {name}")
    archive = functions_archive(dependencies=arguments.dependencies)
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    say(f"functions: {len(archive)} bytes packed, {unpacked} unpacked")
    return {
        "benchmark": "startup",
        "processor_seconds": {name: round(seconds, 3) for name, seconds in best.items()},
        "functions_archive_bytes": len(archive),
        "functions_unpacked_bytes": unpacked,
        "functions_with_dependencies": arguments.dependencies,
    }


def started() -> dict[str, list[str]]:
    """Return what is started, by name."""
    root, found = checkout(), {_PYTHON: "pass"}
    for library in ("numpy", "pydantic", "boto3", "awsiot.greengrasscoreipc.clientv2"):
        found[f"import {library}"] = f"import {library}"
    for path in sorted((root / "components").glob("*/__main__.py")):
        found[f"component {path.parent.name}"] = f"import components.{path.parent.name}.__main__"
    found["process that trains"] = "import components.trainer.work"
    found["process that judges a model"] = "import fedgrass.edge.admit"
    for module in _handlers(root):
        found[f"function {module}"] = f"{_AS_LAMBDA}; import fedgrass.cloud.rounds.{module}"
    commands = {name: [sys.executable, "-c", code] for name, code in found.items()}
    for words in (["--help"], ["--version"], ["fleet", "list", "--fleet", "none"]):
        commands["fedgrass " + " ".join(words[:2])] = [sys.executable, "-c", _COMMAND, *words]
    return commands


def _handlers(root: Path) -> list[str]:
    """Return the modules that the template names as functions' handlers."""
    lines = (root / "cloud" / "template.yaml").read_text().splitlines()
    before = "Handler: fedgrass.cloud.rounds."
    names = {line.partition(before)[2].partition(".")[0] for line in lines if before in line}
    if not names:
        raise SystemExit("cloud/template.yaml: names no handler below fedgrass.cloud.rounds")
    return sorted(names)


def _processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Nothing of the account that this machine may have, and no waiting: port 9 discards, and here refuses.
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "AKID",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
    }
    subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=checkout()
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
