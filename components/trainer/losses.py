"""The losses that this device reported last, over restarts: by them it finds out whether a round asks it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.protocol.message import Metrics
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.utility import LastLosses, told_loss

LOSSES = "losses.json"
_MOST_BYTES = 4096


class KeptLosses:
    """What was reported to rounds that choose by loss.

    Parameters
    ----------
    path
        File that holds it; damaged, it counts as none: this device is then asked by its lot alone.
    """

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log

    def counting_for(self, announcement: Announcement) -> float | None:
        """Return the loss by which a round may ask this device; None if none counts, or the round does not choose so."""
        by = announcement.cohort.by_loss
        if by is None:
            return None
        return self._load().before(announcement.round, by.since, announcement.base.graph_sha256)

    def reported(self, announcement: Announcement, metrics: Metrics) -> None:
        """Keep the loss that goes with an update, if the round is one that chooses by it. Before the update goes."""
        told = told_loss(metrics, announcement.round, announcement.base.graph_sha256)
        if announcement.cohort.by_loss is None or told is None:
            return
        try:
            write_atomically(self._path, self._load().and_then(told).model_dump_json().encode())
        except OSError as error:
            # The update counts all the same; this device is asked by its older loss, or by lot.
            self._log.log_event("loss_not_written", reason=error.strerror)

    def _load(self) -> LastLosses:
        try:
            with self._path.open("rb") as file:
                return LastLosses.model_validate_json(file.read(_MOST_BYTES))
        except (OSError, ValidationError):
            return LastLosses()
