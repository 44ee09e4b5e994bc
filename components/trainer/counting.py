"""When to count the device's examples again: that takes a process which reads them all, so not at every word of a model."""

from __future__ import annotations

from collections.abc import Callable

from fedgrass.bundle import Manifest
from fedgrass.data_settings import DataSettings

# A folder whose files only change inside keeps its time, so it is counted again now and then.
_AGAIN_SECONDS = 600.0
# A device without data is out of every round: its first examples should be seen soon.
_AGAIN_AFTER_TROUBLE_SECONDS = 60.0


class Counting:
    """Remembers what was counted last.

    Parameters
    ----------
    clock
        Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counted: object = None
        self._at = 0.0

    def is_due(self, data: DataSettings, manifest: Manifest, *, problem: bool) -> bool:
        """Whether settings, model or file are others than at the last count, or it is long ago; the caller then counts.

        Parameters
        ----------
        problem
            Whether there are no examples, as far as is known.
        """
        now, found = self._clock(), (data, manifest.parameters_sha256, _stamp(data))
        since = now - self._at
        if found == self._counted and since < (_AGAIN_AFTER_TROUBLE_SECONDS if problem else _AGAIN_SECONDS):
            return False
        self._counted, self._at = found, now
        return True


def _stamp(data: DataSettings) -> tuple[int, int, int] | None:
    """What changes with a file that is rewritten, or a folder that gains a file; None without one."""
    try:
        found = data.file.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
