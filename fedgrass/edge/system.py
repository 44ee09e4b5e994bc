"""What a device has to spare, and when that is too little to train."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Reading:
    """The device now. ``load`` is the one-minute load average per processor."""

    cpu_percent: float
    load: float
    memory_percent: float
    memory_free_bytes: int
    disk_free_bytes: int


def read(folder: Path) -> Reading:
    """Measure; the disk is the one that holds ``folder``, and CPU use is since the last call."""
    memory = psutil.virtual_memory()
    return Reading(
        cpu_percent=psutil.cpu_percent(interval=None),
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
        memory_percent=memory.percent,
        memory_free_bytes=memory.available,
        disk_free_bytes=psutil.disk_usage(str(folder)).free,
    )


@dataclass(frozen=True)
class Limits:
    """What must be free for a training to start."""

    disk_bytes: int
    memory_bytes: int

    def objection(self, reading: Reading) -> str:
        """Return why the device should not train now, or nothing."""
        if reading.disk_free_bytes < self.disk_bytes:
            return f"{reading.disk_free_bytes >> 20} MB of disk are free, minFreeDiskMb is {self.disk_bytes >> 20}"
        if reading.memory_free_bytes < self.memory_bytes:
            return (
                f"{reading.memory_free_bytes >> 20} MB of memory are free, minFreeMemoryMb is {self.memory_bytes >> 20}"
            )
        return ""
