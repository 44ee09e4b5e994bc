"""An interrupt ends the demo whatever it was doing, and the next run finds an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedgrass.local.demo.__main__ import emptied
from tests.fixtures.waiting import PATIENCE, eventually

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


def test_what_an_earlier_run_left_is_out_of_the_way_at_once_and_deleted_beside_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for left in (folder / "devices" / "one", tmp_path / "demo.old.1.1"):  # the second by a run that was interrupted
        left.mkdir(parents=True)
        (left / "file").write_text("of an earlier run")
    with emptied(folder):
        assert not folder.exists()
        folder.mkdir()
        eventually(lambda: list(tmp_path.iterdir()) == [folder])
    with emptied(folder):
        pass
    assert not folder.exists()
