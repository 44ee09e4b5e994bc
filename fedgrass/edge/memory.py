"""Whether a model fits into the memory that this device has left: said before the training, not found out by the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from fedgrass.bundle import Manifest
from fedgrass.edge.resource_policy import UnavailableError

_MB = 1 << 20
_COPIES = 4
"""Parameters, what a step reads of them, their gradients and their new values; measured by ``benchmarks.model_memory``."""

_SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}
_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def needed_bytes(manifest: Manifest) -> int:
    """Return what training takes at least: a multiple of the parameters' size. What lies between the layers comes on top."""
    return manifest.parameter_bytes * (_COPIES + _SLOTS.get(manifest.optimizer.name, 0))


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


def require_memory(manifest: Manifest, available: int) -> None:
    """Raise `UnavailableError` if training this model cannot fit into so many bytes."""
    needed = needed_bytes(manifest)
    if needed > available:
        raise UnavailableError(
            f"training model {manifest.name!r} needs about {-(-needed // _MB)} MB of memory, {available // _MB} MB are free"
        )


def _left_in_groups(groups: Path, own: Path) -> Iterator[int]:
    """Yield what each bounded control group above this process has left."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            yield from _left(group)
            if group == root:
                break


def _left(group: Path) -> Iterator[int]:
    for limit, usage in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no limit
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
