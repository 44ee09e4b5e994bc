"""Imports point one way: who may import whom, and what stays out of which side."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.places import ROOT

# Parts of the package with what each may import beside itself; what is in none of them is shared, knows none, and every part
# may import it. The command line finds the others' commands by entry points.
PARTS: dict[str, set[str]] = {
    "fedgrass": set(),
    "fedgrass.cli": {"fedgrass"},
    "fedgrass.edge": {"fedgrass"},
    "fedgrass.cloud": {"fedgrass", "fedgrass.cli"},
    "fedgrass.authoring": {"fedgrass", "fedgrass.cli"},
    "fedgrass.simulation": {"fedgrass", "fedgrass.cli", "fedgrass.cloud"},
    "fedgrass.local": {"fedgrass", "fedgrass.cli", "fedgrass.cloud"},
    "components": {"fedgrass", "fedgrass.edge"},
    "examples": {"fedgrass", "fedgrass.edge"},
}
# What stands in for AWS and for a nucleus takes nothing from what it tries but these; of logs and events nothing is tried.
STAND_INS = ("aws", "core_device")
STAND_INS_TAKE = {"fedgrass.errors", "fedgrass.files", "fedgrass.logs"}
# For type checkers alone: the Python API's names.
API = ROOT / "fedgrass" / "__init__.py"
TENSORFLOW = {"keras", "tensorflow"}
ON_A_DEVICE = {"awscrt", "awsiot", "stream_manager"}


def modules(part: str) -> list[Path]:
    """Files of a part, without those of the parts below it."""
    folder = ROOT / part.replace(".", "/")
    below = [ROOT / other.replace(".", "/") for other in PARTS if other.startswith(f"{part}.")]
    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if "greengrass-build" not in path.parts and path != API and not any(path.is_relative_to(one) for one in below)
    ]


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in it; of ``from a import b`` it is ``a.b``, as b may be a module."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return frozenset(plain | {f"{node.module}.{alias.name}" for node in taken for alias in node.names})


def part_of(module: str) -> str:
    """Part that a module is of; an empty word for what is not ours."""
    return max((part for part in PARTS if f"{module}.".startswith(f"{part}.")), key=len, default="")


def found(paths: Iterable[Path], *, wrong: set[str]) -> list[str]:
    """Files that import one of these packages, or something of theirs."""
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in sorted(imported(path))
        if any(f"{module}.".startswith(f"{package}.") for package in wrong)
    ]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_imports_only_those_that_it_may(part: str) -> None:
    assert modules(part)
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(part)
        for module in sorted(imported(path))
        if part_of(module) not in PARTS[part] | {part, ""}
    ]
    assert wrong == []


def test_stand_ins_take_nothing_of_what_they_try_but_errors_files_and_logs() -> None:
    folders = [ROOT / "fedgrass/local" / name for name in STAND_INS]
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in folders
        for path in folder.rglob("*.py")
        for module in imported(path)
        if part_of(module) not in {"", "fedgrass.local"} and module.rpartition(".")[0] not in STAND_INS_TAKE
    ]
    assert wrong == []


def test_the_python_api_is_imported_when_it_is_asked_for() -> None:
    tree = ast.parse(API.read_text())
    assert {node.module for node in tree.body if isinstance(node, ast.ImportFrom)} <= {"__future__", "typing"}


def test_the_build_tool_needs_nothing_but_the_standard_library() -> None:
    assert {module.split(".")[0] for module in imported(ROOT / "components/build.py")} <= {
        "__future__",
        "argparse",
        "json",
        "pathlib",
        "shutil",
        "sys",
        "zipfile",
    }


def test_a_component_never_imports_another() -> None:
    names = sorted(path.name for path in (ROOT / "components").iterdir() if (path / "__init__.py").exists())
    assert len(names) > 2
    for name in names:
        others = {f"components.{other}" for other in names if other != name}
        assert found((ROOT / "components" / name).rglob("*.py"), wrong=others) == []


def test_tensorflow_is_imported_by_authoring_and_by_the_engine_of_its_name_alone() -> None:
    for part in sorted(PARTS.keys() - {"fedgrass.authoring", "examples"}):
        wrong = found(modules(part), wrong=TENSORFLOW)
        assert [line for line in wrong if not line.startswith("fedgrass/engines/keras.py ")] == []


def test_the_clouds_side_does_not_use_what_is_the_devices() -> None:
    for part in ("fedgrass.cloud", "fedgrass.authoring"):
        assert found(modules(part), wrong=ON_A_DEVICE | {"fedgrass.edge"}) == []


def test_no_two_files_of_tests_have_one_name() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name, count in names.items() if count > 1} == set(), "pytest collects only the first of them"


# What is never imported before it is used, by entry: most of a process's start is imports (`benchmarks.startup`). Pydantic looks
# for plugins with the first model that it builds, so one that is built while modules are imported shows by them.
MODELS_BUILT = "pydantic.plugin._loader"
ANYWHERE = {"numpy", "ai_edge_litert", "tensorflow", "torch", "flwr", "pandas", "sklearn", MODELS_BUILT}
AWS = {"boto3", "botocore", "s3transfer"}
ON_DEVICES = ANYWHERE | AWS | {"rich", "typer", "cryptography", "fedgrass.protocol.settings", "fedgrass.strategies"}
FOR_HELP = ANYWHERE | AWS | {"pydantic", "cryptography", "fedgrass.protocol", "fedgrass.cloud"}
LATER: dict[str, set[str]] = {
    **{f"components.{name}.__main__": ON_DEVICES for name in ("heartbeat", "model_deployer", "trainer")},
    "fedgrass.edge.admit": ON_DEVICES | {"awscrt"},
    # All of the functions at once.
    ", ".join(
        f"fedgrass.cloud.rounds.{path.stem}"
        for path in sorted((ROOT / "fedgrass/cloud/rounds").glob("*.py"))
        if "def handler(" in path.read_text()
    ): ANYWHERE | {"rich", "typer", "cryptography", "zstandard"},
    "fedgrass.cli": FOR_HELP,
    "fedgrass.cli.fleet": ANYWHERE | AWS | {"cryptography", "fedgrass.cloud"},
}


@pytest.mark.parametrize("modules", LATER, ids=lambda modules: modules.partition(",")[0])
def test_what_takes_long_to_import_is_imported_when_it_is_used(modules: str) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded >= set(modules.split(", "))
    assert loaded & LATER[modules] == set()


def test_help_imports_no_command() -> None:
    code = (
        "import sys; sys.argv = ['fedgrass', '--help']\nfrom fedgrass.cli import app\n"
        "try: app()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "simulate" in done.stdout
    assert set(done.stderr.split()) & FOR_HELP == set()
