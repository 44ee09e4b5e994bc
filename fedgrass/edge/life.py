"""What a component's process leaves for others to see: that it lives, how it ended, and how often it was started.

It holds a lock on a file in its work folder, which the kernel gives back when the process ends, whatever it ended of. The file
says what the process said last: nothing, or the exit code of an end of its own. Beside it are the times of its starts: nucleus
lite gives a unit three in an hour, and the classic nucleus three errors.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedgrass.files import write_atomically

STARTS_AN_HOUR = 3

_HOUR = 3600.0


@dataclass(frozen=True)
class Seen:
    """How a component's process is: whether it runs, and the exit code of an end that it had time to tell of."""

    runs: bool
    exit_code: int | None = None


class Life:
    """What is seen of the present process; made at its start.

    Parameters
    ----------
    work
        The component's work folder.
    """

    def __init__(self, work: Path, clock: Callable[[], float] = time.time) -> None:
        # Kept open for as long as the process lives, since the lock goes with it. "a+" does not truncate before the
        # lock is held.
        self._file = (work / "alive").open("a+")
        # Not for long at most: others only look.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(0)
        now = clock()
        # Times in the future come from a clock that was set back; they would count for ever.
        starts = [at for at in _read(work / "starts.json") if now - _HOUR < at <= now]
        self.starts = len(starts) + 1
        with suppress(OSError):  # a full disk must not keep a component from starting
            write_atomically(work / "starts.json", json.dumps([*starts[-20:], now]).encode())

    @property
    def may_leave(self) -> bool:
        """Whether the nucleus would start this component again within this hour."""
        return self.starts < STARTS_AN_HOUR

    def ends(self, exit_code: int) -> None:
        """Say that the process ends by itself."""
        with suppress(OSError):
            self._file.write(str(exit_code))
            self._file.flush()


def seen(work: Path) -> Seen | None:
    """Look at a component by its work folder; None if it has left nothing to look at."""
    try:
        # Read-only: looking must neither make the file nor take the lock that its owner waits for.
        descriptor = os.open(work / "alive", os.O_RDONLY)
    except OSError:
        return None
    try:
        # A lock ends with its process, however that ends: a PID in a file could be another's by now.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        said = os.read(descriptor, 16).decode(errors="replace")
        return Seen(False, int(said) if said.isdecimal() else None)
    except BlockingIOError:
        return Seen(True)
    finally:
        os.close(descriptor)


def starts_within_an_hour(work: Path, clock: Callable[[], float] = time.time) -> int:
    """Return how often a component was started in the last hour, by its work folder."""
    now = clock()
    return sum(now - _HOUR < at <= now for at in _read(work / "starts.json"))


def _read(path: Path) -> list[float]:
    try:
        found = json.loads(path.read_bytes())
        return [float(at) for at in found]
    except (OSError, ValueError, TypeError):
        return []
