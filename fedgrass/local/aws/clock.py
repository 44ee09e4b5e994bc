"""The account's time, by which schedules are due and alarms look: the machine's, or later if somebody advances it.

Functions, jobs and devices have the machine's time, whatever this one says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Protocol

from werkzeug import Request, Response

from fedgrass.local.aws.api import ApiError, json_response
from fedgrass.logs import log_event

_MOST_SECONDS = 86_400
_LONGEST_WAIT_S = 60.0
"""A machine that slept, or whose time was set, has another time than the wait expected."""


class Part(Protocol):
    """Something of the account that happens at certain times."""

    def due(self) -> datetime | None:
        """Return when it happens next; None if nothing is to come."""

    def happen(self, now: datetime) -> None:
        """Let all happen that is due by ``now``; what was missed several times happens once."""


class Clock:
    """Lets the account's parts happen when they are due.

    Parameters
    ----------
    machine
        The machine's time.
    stopped
        Whether time passes only when it is advanced: then no verdict of a test hangs on how long it takes.
    """

    def __init__(
        self, *, machine: Callable[[], datetime] = lambda: datetime.now(timezone.utc), stopped: bool = False
    ) -> None:
        self._machine = machine
        self._stopped_at = machine() if stopped else None
        self._ahead = timedelta()
        self._parts: list[Part] = []
        # Held while something happens, so that the background and `advance` take turns.
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def now(self) -> datetime:
        """Return the account's time."""
        return (self._stopped_at or self._machine()) + self._ahead

    def shown(self, machine: datetime) -> datetime:
        """Return the account's time at a moment of the machine's."""
        return machine + (self.now() - self._machine())

    def drive(self, parts: Sequence[Part]) -> None:
        """Let these happen from now on, each in turn where several are due."""
        self._parts.extend(parts)
        if self._stopped_at is None:
            self._thread.start()

    def advance(self, by: timedelta) -> datetime:
        """Let time pass at once, with all that becomes due in it, in its order; return the time that it is then."""
        with self._lock:
            until = self.now() + by
            while (due := self._due()) is not None and due <= until:
                self._move(due)
                self._happen()
            self._move(until)
        self.look()
        return until

    def look(self) -> None:
        """Look again at when something is due: it has changed."""
        self._wake.set()

    def stop(self) -> None:
        """Let nothing happen any more."""
        self._over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def layer(self, request: Request) -> Response:
        """Answer a request that is signed for ``clock``: ``{"seconds": 900}`` lets so much time pass."""
        asked = request.get_json(force=True, silent=True)
        seconds = asked.get("seconds") if isinstance(asked, dict) else None
        # Booleans are numbers to Python, and NaN lies in no range.
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _MOST_SECONDS:
            expected = f'expected {{"seconds": N}}, from 0 to {_MOST_SECONDS}'
            return ApiError("ValidationException", f"{expected}; found {json.dumps(asked)[:100]}").response()
        return json_response({"now": self.advance(timedelta(seconds=seconds)).isoformat()})

    def _run(self) -> None:
        while not self._over:
            self._wake.clear()
            with self._lock:
                due = self._due()
                waits = _LONGEST_WAIT_S if due is None else (due - self.now()).total_seconds()
                if waits <= 0:
                    self._happen()
                    continue
            self._wake.wait(min(waits, _LONGEST_WAIT_S))

    def _move(self, until: datetime) -> None:
        # The machine's own time goes on meanwhile, and nothing goes back.
        self._ahead += max(timedelta(), until - self.now())

    def _due(self) -> datetime | None:
        return min((due for part in self._parts if (due := part.due()) is not None), default=None)

    def _happen(self) -> None:
        for part in self._parts:
            let(type(part).__name__, part.happen, self.now())


def let(name: str, happen: Callable[..., object], *arguments: object) -> None:
    """Call something that must not stop the others, nor the clock, if it fails; ``name`` is what the log has of it."""
    try:
        happen(*arguments)
    except Exception:  # noqa: BLE001 - whatever moto raises at a target that it does not know, for instance
        log_event("clock_part_failed", part=name)
