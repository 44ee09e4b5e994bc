"""Imports point one way: who may import whom, and what stays out of which side."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cloud.infrastructure.package import ROOT

OURS = {"authoring", "cloud", "components", "examples", "fedgrass", "local", "simulation"}
# The library serves every side and knows none. `local` runs the whole of it, and `simulation` the aggregator.
MAY_IMPORT = {
    "fedgrass": set(),
    "components": {"fedgrass"},
    "cloud": {"fedgrass"},
    "authoring": {"fedgrass"},
    "examples": {"fedgrass"},
    "simulation": {"fedgrass", "cloud"},
    "local": {"fedgrass", "cloud", "components"},
}
# A tool of the build, of the standard library alone, that the GDK and our scripts call.
BUILD = "components.build"
TENSORFLOW = {"keras", "tensorflow"}
ON_A_DEVICE = {"awscrt", "awsiot", "stream_manager"}


def modules(side: str) -> list[Path]:
    return [path for path in sorted((ROOT / side).rglob("*.py")) if "greengrass-build" not in path.parts]


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return frozenset(plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module})


def found(side: str, *, wrong: set[str]) -> list[str]:
    """Files of a side that import one of these packages, or something of theirs."""
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(side)
        for module in sorted(imported(path))
        if any(module == package or module.startswith(f"{package}.") for package in wrong)
    ]


@pytest.mark.parametrize("side", sorted(MAY_IMPORT))
def test_a_side_imports_only_those_that_it_may(side: str) -> None:
    assert modules(side)
    wrong = found(side, wrong=OURS - MAY_IMPORT[side] - {side})
    assert [line for line in wrong if not line.endswith(f" imports {BUILD}")] == []


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
        assert found(f"components/{name}", wrong=others) == []


def test_tensorflow_is_imported_by_authoring_and_by_the_engine_of_its_name_alone() -> None:
    for side in sorted(OURS - {"authoring", "examples"}):
        wrong = found(side, wrong=TENSORFLOW)
        assert [line for line in wrong if not line.startswith("fedgrass/engines/keras.py ")] == []


def test_the_clouds_side_does_not_use_what_is_the_devices() -> None:
    for side in ("cloud", "authoring"):
        assert found(side, wrong=ON_A_DEVICE | {"fedgrass.edge"}) == []


def test_no_two_files_of_tests_have_one_name() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name, count in names.items() if count > 1} == set(), "pytest collects only the first of them"


@pytest.mark.parametrize("module", ["components.heartbeat.__main__", "components.model_deployer.__main__"])
def test_what_does_not_train_lives_without_numpy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'numpy', 'ai_edge_litert', 'boto3'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
