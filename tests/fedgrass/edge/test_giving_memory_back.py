"""Freed memory goes back to the device."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Pieces too small to be mapped one by one, and the last of them kept: the C library cannot shrink its heap by itself.
_PROGRAM = """
import psutil
from fedgrass.edge.memory import give_back
pieces = [bytes(20_000) for _ in range(2_000)]
last = pieces[-1]
del pieces
held = psutil.Process().memory_info().rss
give_back()
print(held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_what_was_freed_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 30_000_000
