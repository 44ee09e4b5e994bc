"""What CI runs ends with all that was left out, and fails if any part did."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.places import ROOT

SETUP = """#!/bin/sh
echo "$@" > asked_setup
"""
TESTS = """#!/bin/sh
[ -s asked_setup ] || exit 9 # what it runs in
echo "$PATH" > asked_path
echo "SKIPPED [2] tests/test_a.py:7: torch is not installed"
echo "SKIPPED [3] tests/test_a.py:9: no browser"
echo "= 3 passed, 5 skipped, 4 deselected in 1.00s ="
exit $TESTS
"""
KIT = """#!/bin/sh
mkdir -p .fedgrass/gdk/bin
echo "left out: the kit: no such host"
exit $KIT
"""
TORCH = """#!/bin/sh
echo "$@" > asked_torch
echo "SKIPPED [1] tests/test_b.py:3: no camera"
echo "left out: the models that take minutes: scripts/torch_tests"
$INSTALLED
echo "= 5 passed, 1 skipped, 7 deselected in 1.00s ="
exit $TORCH
"""
OTHERS = """#!/bin/sh
echo "$@" > asked
echo "SKIPPED [2] tests/test_a.py:7: torch is not installed"
echo "left out: Python 3.10: not on this machine"
exit $OTHERS
"""


ALWAYS = [
    "Python 3.10: not on this machine",
    "[1] tests/test_b.py:3: no camera",
    "[3] tests/test_a.py:9: no browser",
    "the kit: no such host",
    "the device on emulated 64-bit Arm, which needs root and a quarter of an hour: scripts/on_arm",
    "the models that take minutes: scripts/torch_tests",
]


def run(
    place: Path, *, tests: int = 0, torch: int = 0, others: int = 0, kit: int = 1, installed: str = ":"
) -> tuple[int, list[str]]:
    """Run CI with stand-ins for its parts; returns its exit code, and the lines after the last heading."""
    (place / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", place / ".ci/run")
    stubs = {
        "scripts/setup.sh": SETUP,
        "scripts/test": TESTS,
        "scripts/torch_tests": TORCH.replace("$INSTALLED", installed),
        "scripts/other_pythons": OTHERS,
        "scripts/gdk": KIT,
        "bin/chromium": "#!/bin/sh\n",
    }
    for name, script in stubs.items():
        file = place / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(script)
        file.chmod(0o755)
    environment = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "TESTS": str(tests),
        "TORCH": str(torch),
        "OTHERS": str(others),
        "KIT": str(kit),
    }
    done = subprocess.run([place / ".ci/run"], env=environment, capture_output=True, text=True, check=False)
    left_out = done.stdout.partition("Skipped or left out:\n")[2].splitlines()
    return done.returncode, [line.strip() for line in left_out]


@pytest.mark.parametrize(("tests", "torch", "others", "code"), [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1)])
def test_ci_ends_with_what_was_left_out_and_why(tmp_path: Path, tests: int, torch: int, others: int, code: int) -> None:
    found, left_out = run(tmp_path, tests=tests, torch=torch, others=others)
    assert found == code
    assert (tmp_path / "asked_setup").read_text() == "local,authoring,dev,mlflow\n"
    assert (tmp_path / "asked").read_text() == "--short\n"
    assert (tmp_path / "asked_torch").read_text() == "--short\n"
    assert sorted(left_out) == sorted(["4 tests marked slow: pytest -m slow", *ALWAYS])


def test_what_the_other_environment_could_not_try_is_among_what_was_left_out(tmp_path: Path) -> None:
    _, left_out = run(tmp_path, installed='echo "left out: PyTorch could not be installed: scripts/torch_tests"')
    assert "PyTorch could not be installed: scripts/torch_tests" in left_out
    assert "[2] tests/test_a.py:7: torch is not installed" in left_out


@pytest.mark.parametrize(("kit", "there"), [(0, True), (1, False)])
def test_the_development_kit_is_on_the_path_of_the_tests_where_it_could_be_installed(
    tmp_path: Path, kit: int, there: bool
) -> None:
    run(tmp_path, kit=kit)
    assert (tmp_path / "asked_path").read_text().startswith(f"{tmp_path}/.fedgrass/gdk/bin:") == there
