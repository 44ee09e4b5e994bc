"""What all processes of a run hold together, and an end to those that outlive it."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal

_NAME = "FEDGRASS_BENCHMARK"


class PeakMemory(threading.Thread):
    """The largest sum of the memory of all processes that inherited a mark in their environment, until it is stopped.

    Not of a process and those below it: Ray's detach themselves from what started them.

    Parameters
    ----------
    kind
        ``Rss``, in which pages that processes share count for each of them, or ``Pss``, in which they count once in all.
    """

    def __init__(self, kind: Literal["Rss", "Pss"] = "Rss") -> None:
        super().__init__(daemon=True)
        self.environment = {_NAME: uuid.uuid4().hex}
        self.peak_mb = 0.0
        self.spent: list[tuple[float, float]] = []
        """Moments of `time.monotonic`, and the processor's seconds that all processes had used until then."""
        self._seconds: dict[int, float] = {}
        self._kind = kind
        self._mark = f"{_NAME}={self.environment[_NAME]}".encode()
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self._ended.wait(0.2):
            processes = self._processes()
            # What one has used that has ended counts on.
            self._seconds |= {one: max(processor_seconds(one), self._seconds.get(one, 0.0)) for one in processes}
            self.spent.append((time.monotonic(), sum(self._seconds.values())))
            self.peak_mb = max(self.peak_mb, sum(memory_mb(one, self._kind) for one in processes))

    def spent_between(self, began: float, ended: float) -> float:
        """Return the processor's seconds that were used between two moments, to some 0.2 s."""
        found = [next((used for moment, used in self.spent if moment >= at), 0.0) for at in (began, ended)]
        return max(0.0, found[1] - found[0])

    def stop(self) -> None:
        """Sample no more, and end the processes that are left."""
        self._ended.set()
        self.join()
        for left in self._processes():
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)

    def _processes(self) -> list[int]:
        ids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [process for process in ids if self._is_ours(process)]

    def _is_ours(self, process: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return False


def processor_seconds(process: int) -> float:
    """Return the processor's seconds that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # proc(5): utime and stime, the 14th and 15th, of which the first two are before the parenthesis.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int, kind: Literal["Rss", "Pss"] = "Rss") -> float:
    """Return what a process holds, in MB; 0 if it has ended."""
    try:
        if kind == "Pss":
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        else:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    name = "Pss:" if kind == "Pss" else "VmRSS:"
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name)), 0.0)
