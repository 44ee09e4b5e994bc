"""An interrupt ends the demo whatever it was doing."""

from __future__ import annotations

import subprocess
import sys

from tests.fixtures.waiting import PATIENCE

SCRIPT = """
import os, signal, weakref
from fedgrass.local.demo.__main__ import _be_interruptible

class Thing: ...

def finalizer():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1_000_000): pass  # the signal is handled in here, and what is raised is dropped

try:
    _be_interruptible()
    thing = Thing()
    weakref.finalize(thing, finalizer)
    del thing
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_that_comes_within_a_finalizer_is_not_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ended.stdout == "interrupted\n"
