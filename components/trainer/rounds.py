"""Which round this device works on: a small durable state machine.

Announcements come late, twice, out of order and after restarts. They are ordered by ``opened_at``, the cloud's clock, which
also tells a re-created fleet's round 1 from an old one. A round is answered at most once: ``answered`` is final.

Where rounds never wait, the one that a device trains for may be behind the newest: it is worked on first, for as long as its
update counts, and the newest after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.trainer.task import Result
from fedgrass.answer import Answer
from fedgrass.errors import MessageError
from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.partial import lasts
from fedgrass.protocol.cohort import fits, is_asked
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import model_prefix, update_prefix

Phase = Literal["open", "closed", "answered", "passed"]
"""``open``: to be worked on. ``closed``: ended in the cloud first. ``answered``: an update, a decline or a failure was handed
on. ``passed``: this device was not asked."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    announcement: Announcement
    phase: Phase
    received_at: float
    behind: Announcement | None = None


class Rounds:
    """The newest round that this device knows of.

    Parameters
    ----------
    path
        File that holds it over restarts.
    tags
        What the configuration says of this device, by which a cohort may choose.
    loss
        What this device reported before a round, by which its cohort may choose.
    clock
        This device's own clock, seconds; only differences of it are used.
    """

    def __init__(
        self,
        path: Path,
        *,
        fleet: str,
        thing: str,
        log: Log,
        tags: Callable[[], Mapping[str, str]] = dict,
        loss: Callable[[Announcement], float | None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._fleet = fleet
        self._thing = thing
        self._log = log
        self._loss = loss
        self._tags = tags
        self._clock = clock
        self._record = self._load()

    @property
    def phase(self) -> Phase | None:
        """Phase of the newest round."""
        return self._record.phase if self._record else None

    @property
    def newest(self) -> Announcement | None:
        """The newest announcement that was taken in, whatever became of it."""
        return self._record.announcement if self._record else None

    @property
    def behind(self) -> Announcement | None:
        """The round that is over and still worked on, because its update counts in a later one."""
        return self._record.behind if self._record else None

    def announced(self, payload: bytes) -> Announcement | None:
        """Take an announcement in; returns it if this device is to work on it (again), None if there is nothing to do."""
        try:
            announcement = Announcement.decode(payload)
            self._check(announcement)
        except MessageError as error:
            self._log.log_event("announcement_ignored", reason=str(error))
            return None
        known = self._record
        # By the time of opening: the number starts over when a fleet is set up again.
        if known is not None and announcement.opened_at < known.announcement.opened_at:
            self._log.log_event("announcement_ignored", reason="stale", round=announcement.round)
            return None
        if known is not None and _identity(announcement) == _identity(known.announcement):
            if known.phase in ("answered", "passed"):
                return None  # a retained message comes again with each renewal of the subscription: no trouble
            if known.phase == "closed":  # said again, as a retained message is: it is open after all
                self._move("open")
            return known.announcement
        # Decided once and kept: tags that change in mid-round must not have a device join or leave it.
        cohort = announcement.cohort
        asked = is_asked(cohort, self._thing, self._loss(announcement)) and fits(cohort.where, self._tags())
        self._keep(
            _Record(
                announcement=announcement,
                phase="open" if asked else "passed",
                received_at=self._clock(),
                behind=self._still_counts(announcement),
            )
        )
        if not asked:
            self._log.log_event("not_in_cohort", round=announcement.round)
        return announcement if asked else None

    def closed(self) -> None:
        """Note that no round is open in the cloud any more."""
        known = self._record
        if known is not None and known.phase == "open":
            self._log.log_event("announced_round_closed", round=known.announcement.round)
            # What is open and has nothing before it is at hand: where its update counts later, it stays so.
            at_hand = known.behind or (known.announcement if known.announcement.max_age else None)
            self._keep(known.model_copy(update={"phase": "closed", "behind": at_hand}))

    def answered(self, announcement: Announcement) -> None:
        """Note that this round's answer is safe on disk; final."""
        known = self._record
        if known is None:
            return
        if known.behind is not None and _identity(known.behind) == _identity(announcement):
            self._keep(known.model_copy(update={"behind": None}))
        if _identity(known.announcement) == _identity(announcement):
            self._move("answered")

    def unfinished(self) -> Announcement | None:
        """Return the round to go on with after a restart, unless its time is up by this device's clock.

        Both ends of that time are read here, so a clock that is wrong does not matter. A round that is left out is
        taken up again if the retained announcement says that it is still open. One that is behind comes first.
        """
        if self._record is None:
            return None
        if self._record.behind is not None:
            return self._record.behind
        if self._record.phase != "open":
            return None
        announcement = self._record.announcement
        lasts = (announcement.deadline - announcement.opened_at).total_seconds()
        return announcement if self._clock() - self._record.received_at <= lasts else None

    def time_left(self, announcement: Announcement) -> Callable[[], float | None]:
        """Return what says how many seconds the training for an announcement may still last; None: to its end.

        By this device's own clock where that lies within the round, as a device that comes back late needs it; by how long ago
        the announcement came where the clock is wrong.
        """
        known, seconds = self._record, lasts(announcement)
        if seconds is None or known is None or _identity(known.announcement) != _identity(announcement):
            return lambda: None
        opened = announcement.opened_at.timestamp()
        in_round = opened <= known.received_at <= announcement.deadline.timestamp()
        until = (opened if in_round else known.received_at) + seconds
        return lambda: until - self._clock()

    def _still_counts(self, newest: Announcement) -> Announcement | None:
        """Return the round at hand if its update would still count when ``newest`` takes the place of the newest one."""
        known = self._record
        if known is None:
            return None
        at_hand = known.behind or (known.announcement if known.phase == "open" else None)
        if at_hand is None or at_hand.max_age == 0:
            return None
        # Another graph has other parameters; a lower number is a fleet that was made anew.
        counts = at_hand.base.graph_sha256 == newest.base.graph_sha256
        return at_hand if counts and 0 <= newest.round - at_hand.round <= at_hand.max_age else None

    def _check(self, announcement: Announcement) -> None:
        if announcement.fleet != self._fleet:
            raise MessageError(f"it is for fleet {announcement.fleet!r}, this device is of {self._fleet!r}")
        prefix = update_prefix(self._fleet, announcement.round)
        # A message must not have the device write wherever else its role lets it.
        if announcement.upload.prefix != prefix:
            raise MessageError(f"upload.prefix is {announcement.upload.prefix!r}, expected {prefix!r}")
        for model in filter(None, (announcement.base, announcement.compare)):
            # Keys come from a message: they must not lead to objects of other kinds that the role can read.
            folder = model_prefix(self._fleet, model.version)
            if not model.parameters_key.startswith(folder):
                raise MessageError(f"{model.parameters_key!r} is not under {folder!r}")

    def _move(self, phase: Phase) -> None:
        if self._record is not None and self._record.phase != phase:
            self._keep(self._record.model_copy(update={"phase": phase}))

    def _keep(self, record: _Record) -> None:
        self._record = record
        try:
            write_atomically(self._path, record.model_dump_json(by_alias=True).encode())
        except OSError as error:
            # A restart then sees the earlier state, and an answer that is repeated is known by its key.
            self._log.log_event("round_record_not_written", reason=error.strerror)

    def _load(self) -> _Record | None:
        try:
            record = _Record.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            self._log.log_event("round_record_damaged", file=str(self._path))
            return None
        # The device was moved to another fleet: its old round is nobody's.
        return record if record.announcement.fleet == self._fleet else None


def _identity(announcement: Announcement) -> tuple[int, float]:
    return announcement.round, announcement.opened_at.timestamp()


def answer_key(announcement: Announcement) -> str:
    """Key under which a round's one answer is sent: the same after every restart."""
    return f"round-{announcement.round:06d}-{round(announcement.opened_at.timestamp() * 1000)}"


def answer_of(announcement: Announcement, result: Result) -> Answer:
    """Return what the cloud is told of a round's result."""
    status: Literal["uploaded", "evaluated", "declined", "failed"]
    if result.status == "done":
        status = "evaluated" if announcement.task == "evaluate" else "uploaded"
    else:
        status = "failed" if result.status == "failed" else "declined"
    told = result.model_dump(
        include={"reason", "sha256", "bytes", "num_examples", "metrics", "sums", "base_sums", "seconds"}
    )
    return Answer(status, **told)
