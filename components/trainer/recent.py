"""How often this device has trained for a round lately: its owner's limit, over restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from fedgrass.files import write_atomically

_DAY = 86_400.0


class RecentRounds:
    """The rounds that this device took part in within a day, and why not to take part in another.

    Parameters
    ----------
    path
        File that holds their times; damaged, it counts as none.
    most
        Gives the limit; 0 is none, and nothing is written.
    clock
        This device's own clock, seconds. A time that lies ahead of it does not count: the clock was set back.
    """

    def __init__(self, path: Path, most: Callable[[], int], *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._most = most
        self._clock = clock
        self._unwritten: list[float] = []

    def took_part(self) -> None:
        """Count a round."""
        if most := self._most():
            # As many as the limit: older ones cannot decide anything.
            times = [*self._times(), self._clock()][-most:]
            # The round is answered by now, and a full disk must not end the component: it counts in memory until then.
            try:
                write_atomically(self._path, json.dumps(times).encode())
                self._unwritten = []
            except OSError:
                self._unwritten.append(times[-1])

    def objection(self) -> str:
        """Return why not to take part in a round now; empty if nothing is against it."""
        most = self._most()
        if not most or len(times := self._times()) < most:
            return ""
        # When the oldest of those that count is a day old.
        hours = (times[-most] + _DAY - self._clock()) / 3600
        return f"it has taken part in {most} rounds within a day (maxRoundsPerDay); again in {hours:.1f} h"

    def _times(self) -> list[float]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            found = []
        now = self._clock()
        known = [*(found if isinstance(found, list) else []), *self._unwritten]
        return sorted(at for at in known if isinstance(at, float) and now - _DAY < at <= now)
