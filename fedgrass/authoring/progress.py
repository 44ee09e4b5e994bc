"""Word of where a long export is: nothing is said of a short one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SILENCE = 10.0
"""Seconds without a word after which the next place is told."""


class _Progress:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._began = self._said = time.monotonic()

    def at(self, where: str) -> None:
        now = time.monotonic()
        if now - self._said >= SILENCE:
            self._tell(f"{now - self._began:.0f} s: {where}")
            self._said = now


_current: ContextVar[_Progress | None] = ContextVar("progress", default=None)


@contextmanager
def reported(tell: Callable[[str], None]) -> Iterator[None]:
    """Have `at` tell this function, within the context."""
    token = _current.set(_Progress(tell))
    try:
        yield
    finally:
        _current.reset(token)


def at(where: str) -> None:
    """Say where the export is, if nothing was said for `SILENCE`."""
    progress = _current.get()
    if progress is not None:
        progress.at(where)
