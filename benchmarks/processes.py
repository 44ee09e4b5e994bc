"""What all processes of a run hold together, and an end to those that outlive it."""

from __future__ import annotations

import os
import signal
import threading
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
        self._kind = kind
        self._mark = f"{_NAME}={self.environment[_NAME]}".encode()
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self._ended.wait(0.2):
            self.peak_mb = max(self.peak_mb, sum(memory_mb(process, self._kind) for process in self._processes()))

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
