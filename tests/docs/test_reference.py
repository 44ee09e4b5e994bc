"""The reference says what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_page_is_the_one_that_the_code_gives() -> None:
    code = "import runpy; print(runpy.run_path('scripts/reference')['page'](), end='')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs/reference/configuration.md").read_text(), "run scripts/reference"
