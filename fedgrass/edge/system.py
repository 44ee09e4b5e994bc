"""What a device has to spare, as far as its platform tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

_GROUPS = Path("/sys/fs/cgroup")
# Names in cgroup v2, then in v1. A file that is not there is skipped.
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


@dataclass(frozen=True)
class Reading:
    """The device now.

    ``load`` is the one-minute load average per processor. ``others_percent`` is the share of all processors in use by what
    runs at normal priority, the trainer therefore not included. ``memory_free_bytes`` is what this process may still take
    (`available_bytes`). ``temperature`` is the hottest sensor's in °C. What the platform does not tell is None.
    ``read_only`` is the disk, as flash is mounted again after errors.
    """

    cpu_percent: float
    others_percent: float
    load: float
    memory_percent: float
    memory_free_bytes: int
    disk_free_bytes: int
    temperature: float | None = None
    battery_percent: float | None = None
    on_mains: bool | None = None
    read_only: bool = False


class Sensors:
    """Measures; CPU use is over the time since this object last measured.

    Parameters
    ----------
    folder
        On the disk that is measured.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._times = psutil.cpu_times()

    def read(self) -> Reading:
        """Measure now."""
        cpu, others = self._cpu()
        battery = _told(psutil, "sensors_battery")
        return Reading(
            cpu_percent=cpu,
            others_percent=others,
            load=os.getloadavg()[0] / (os.cpu_count() or 1),
            memory_percent=psutil.virtual_memory().percent,
            memory_free_bytes=available_bytes(),
            disk_free_bytes=psutil.disk_usage(str(self._folder)).free,
            temperature=_hottest(_told(psutil, "sensors_temperatures") or {}),
            battery_percent=None if battery is None else float(battery.percent),
            read_only=bool(os.statvfs(self._folder).f_flag & os.ST_RDONLY),
            on_mains=None if battery is None else battery.power_plugged,
        )

    def _cpu(self) -> tuple[float, float]:
        before, self._times = self._times, psutil.cpu_times()
        # By field names, as they differ between platforms.
        spent = {name: getattr(self._times, name) - getattr(before, name) for name in self._times._fields}
        # The kernel counts a guest's time twice: as its own and as user time.
        total = sum(value for name, value in spent.items() if not name.startswith("guest"))
        # Two looks within one tick of the kernel's clock.
        if total <= 0:
            return 0.0, 0.0
        idle = spent["idle"] + spent.get("iowait", 0.0)
        niced = spent.get("nice", 0.0)
        # The trainer runs at low priority, and the kernel counts that apart: what is left is the others'.
        return _percent(total - idle, total), _percent(total - idle - niced, total)


def available_bytes(*, groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return what this process may still take: the system's free memory, or less where a control group bounds it.

    Parameters
    ----------
    groups
        Where control groups are mounted.
    own
        The file that names this process's groups.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(groups, own)])


def _left_in_groups(groups: Path, own: Path) -> Iterator[int]:
    """Yield what each bounded control group above this process has left."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    # `hierarchy:controllers:path`; v2 has one line with no controllers, v1 one for each group of them.
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        folder = root / path.lstrip("/")
        # Each level may have a limit of its own, and the tightest one counts.
        for group in (folder, *folder.parents):
            yield from _left(group)
            if group == root:
                break


def _left(group: Path) -> Iterator[int]:
    for limit, usage in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no limit
            # The kernel's page cache counts as used; a device that has read a large file would else seem full.
            used = int((group / usage).read_text()) - _reclaimable(group)
            yield max(0, int((group / limit).read_text()) - max(0, used))


def _reclaimable(group: Path) -> int:
    """Return the bytes of files that count as used, but are given up when memory is short."""
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100 * part / whole)), 1)


def _told(module: ModuleType, name: str) -> Any:
    """Ask psutil for what not every platform has; None where it has not."""
    ask = getattr(module, name, None)
    try:
        return ask() if ask is not None else None
    except (OSError, ValueError, NotImplementedError):
        return None


def _hottest(sensors: dict[str, list[Any]]) -> float | None:
    return max((float(sensor.current) for group in sensors.values() for sensor in group), default=None)
