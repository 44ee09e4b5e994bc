"""When live data are compared with the fleet's profile: now and then, beside nothing else, within the owner's limits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from components.trainer.job import Settings
from components.trainer.runner import Runner
from components.trainer.task import Result, Watched
from fedgrass.edge.loop import Loop
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.errors import MessageError
from fedgrass.logs import Log
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import profile_key

# Between two looks at whether a comparison is due; one that the device was too busy for is tried at the next.
LOOK_SECONDS = 60.0
_FORGOTTEN = 3
"""Intervals without a comparison after which the last figure is told no more."""


class DriftWatch:
    """Compares, and tells how far the data are; its methods run on the device's loop.

    Parameters
    ----------
    settings
        Asked each time, as they change.
    newest
        The newest announcement, which names the profile.
    objection
        Says why nothing exact about the data may be told, or nothing.
    busy
        Whether a round is worked on.
    told
        Called with each figure, and with None where there is none any more.
    """

    def __init__(
        self,
        loop: Loop,
        runner: Runner,
        guard: ResourcePolicy,
        log: Log,
        *,
        settings: Callable[[], Settings],
        newest: Callable[[], Announcement | None],
        objection: Callable[[], str],
        busy: Callable[[], bool],
        told: Callable[[Drift | None], None],
        stopping: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._runner = runner
        self._guard = guard
        self._log = log
        self._settings = settings
        self._newest = newest
        self._objection = objection
        self._busy = busy
        self._told = told
        self._stopping = stopping
        self._clock = clock
        self._works = False
        self._compared: Watched | None = None
        self._tried_at = self._found_at = clock()

    def start(self) -> None:
        """Look from now on."""
        self._loop.every(lambda: LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Compare if it is time, and the device has time."""
        watched, settings = self._watched(), self._settings()
        every, now = settings.own.drift_seconds, self._clock()
        if watched is None or not every or self._objection():
            self._compared = None
            self._told(None)
            return
        # What was found against another profile, or long ago, is no figure of now.
        if self._compared not in (None, watched) or now - self._found_at > _FORGOTTEN * max(every, LOOK_SECONDS):
            self._told(None)
        if self._works or self._busy() or (self._compared == watched and now - self._tried_at < every):
            return
        if self._guard.hold() is not None:
            return
        self._works, self._compared, self._tried_at = True, watched, now
        task = settings.task(watched=watched)

        def compare() -> None:
            result = self._runner.run(task, self._stopping, what="while comparing live data")
            self._loop.post(lambda: self._ended(watched, result))

        # On a thread of its own, as the data may take long to read.
        threading.Thread(target=compare, name="drift", daemon=True).start()

    def _ended(self, watched: Watched, result: Result) -> None:
        self._works = False
        if result.status != "done":
            self._log.log_event("live_data_not_compared", reason=result.reason)
            return
        # A newer profile, or the owner's word, may have come meanwhile.
        if result.drift is None or watched != self._watched() or self._objection():
            return
        self._found_at = self._clock()
        self._told(result.drift)
        figures = result.drift.model_dump(exclude_none=True, exclude={"profile"})
        self._log.log_event("live_data_compared", profile=result.drift.profile, figures=figures)

    def _watched(self) -> Watched | None:
        newest = self._newest()
        if newest is None or newest.watch is None:
            return None
        # A key comes from a message: it must not lead to an object of another kind that the role can read.
        if newest.watch.key != profile_key(newest.fleet, newest.watch.round):
            self._log.log_event(
                "announcement_ignored", reason=str(MessageError(f"watch: {newest.watch.key!r} is not a profile's key"))
            )
            return None
        return Watched(profile=newest.watch, bucket=newest.upload.bucket)
