"""What CI runs ends with all that was left out, and fails if any part did."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.places import ROOT

TESTS = """#!/bin/sh
echo "SKIPPED [2] tests/test_a.py:7: torch is not installed"
echo "= 3 passed, 2 skipped, 4 deselected in 1.00s ="
exit $TESTS
"""
OTHERS = """#!/bin/sh
echo "$@" > asked
echo "SKIPPED [2] tests/test_a.py:7: torch is not installed"
echo "left out: Python 3.10: not on this machine"
exit $OTHERS
"""


@pytest.mark.parametrize(("tests", "others", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_ci_ends_with_what_was_left_out_and_why(tmp_path: Path, tests: int, others: int, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    stubs = {"scripts/test": TESTS, "scripts/other_pythons": OTHERS, "bin/chromium": "#!/bin/sh\n"}
    for name, script in stubs.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(script)
        file.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TESTS": str(tests), "OTHERS": str(others)}
    done = subprocess.run([tmp_path / ".ci/run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert (tmp_path / "asked").read_text() == "--short\n"
    left_out = done.stdout.partition("Skipped or left out:\n")[2].splitlines()
    assert [line.strip() for line in left_out] == [
        "4 tests marked slow: pytest -m slow",
        "Python 3.10: not on this machine",
        "[2] tests/test_a.py:7: torch is not installed",
        "PyTorch's and Flower's, which bring gigabytes and ten minutes: scripts/torch_tests",
        "the device on emulated 64-bit Arm, which needs root and a quarter of an hour: scripts/on_arm",
    ]
