"""What the trainer says of itself on the device, and the count of what it has done, which survives restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from fedgrass.edge.ipc import Ipc
from fedgrass.errors import IpcError
from fedgrass.files import write_atomically
from fedgrass.logs import Log
from fedgrass.protocol.device_messages import Tally, TrainerStatus
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import TRAINER_STATUS_TOPIC

_PROGRESS_SECONDS = 2.0
"""Between two epochs that are told, at least. Nucleus lite hangs for good if a component that listens leaves while a message is
handed to it, so a training of twenty epochs a second must not say twenty things a second."""

State = Literal["idle", "waiting", "training", "uploading", "declined", "failed"]


class StatusBoard:
    """The trainer's status; its methods run on the device's loop.

    Parameters
    ----------
    path
        File of the tally.
    problem
        Asked each time for what keeps the device from training now, or nothing.
    """

    def __init__(
        self,
        path: Path,
        ipc: Ipc,
        log: Log,
        *,
        version: str,
        problem: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._ipc = ipc
        self._log = log
        self._problem = problem
        self._clock = clock
        self._told_at = 0.0
        self._status = TrainerStatus(component_version=version, tally=self._load())
        self._private = False

    @property
    def state(self) -> State:
        """What was said last."""
        return self._status.state

    @property
    def round(self) -> int | None:
        """The round that was spoken of last."""
        return self._status.round

    @property
    def examples(self) -> int:
        """Number of local examples, as far as is known."""
        return self._status.examples

    def hides_figures(self, *, private: bool) -> None:
        """Leave figures of this device's data out from now on, or no longer: the heartbeat repeats them to the cloud."""
        self._private = private

    def say(
        self,
        state: State,
        announcement: Announcement | None,
        *,
        epoch: int | None = None,
        examples: int | None = None,
        reason: str = "",
    ) -> None:
        """Change the trainer's status, and publish it; of a training's epochs the first, the last, and some between.

        Parameters
        ----------
        state
            What the trainer does.
        announcement
            The round that it is about; None for none.
        epoch
            Epochs that are done.
        examples
            Examples on this device; as before if not given.
        reason
            Why it is so, in words; cut to the message's bound.
        """
        kept = self._status
        self._status = kept.model_copy(
            update={
                "state": state,
                "round": announcement.round if announcement else None,
                "epoch": epoch or 0,
                "epochs": announcement.fit.epochs if announcement else 0,
                "examples": kept.examples if examples is None else examples,
                "reason": as_reason(reason),
            }
        )
        between = kept.model_copy(update={"epoch": self._status.epoch}) == self._status and epoch != self._status.epochs
        if not between or self._clock() - self._told_at >= _PROGRESS_SECONDS:
            self.publish()

    def has_examples(self, examples: int) -> None:
        """Change the number of local examples, and say it."""
        self._status = self._status.model_copy(update={"examples": examples})
        self.publish()

    def drifted(self, drift: Drift | None) -> None:
        """Say how far live data are from the fleet's profile; None: it is not known."""
        if drift != self._status.drift:
            self._status = self._status.model_copy(update={"drift": drift})
            self.publish()

    def helps(self, key: str) -> None:
        """Say by which key this device is a helper of secure aggregation; empty: it is none."""
        self._status = self._status.model_copy(update={"helper_key": key})

    def publish(self) -> None:
        """Say it again."""
        self._told_at = self._clock()
        # Made for each publication: the problem and the last error are as of now, not of the last change.
        status = self._status.model_copy(update={"last_error": as_reason(self._log.last_error, 200)})
        # Examples and time tell of the data, which rounds with noise are to hide.
        if self._private:
            tally = status.tally.model_copy(update={"training_seconds": 0.0})
            status = status.model_copy(update={"examples": 0, "drift": None, "tally": tally})
        # Last, since it overrides what the state says.
        if problem := self._problem():
            status = status.model_copy(update={"able": False, "reason": as_reason(problem)})
        try:
            self._ipc.publish_local(TRAINER_STATUS_TOPIC, status.encode())
        except IpcError as error:
            self._log.log_event("status_not_published", error=str(error))

    def counted(self, outcome: Literal["taken", "declined", "failed"], seconds: float = 0.0) -> None:
        """Count a round that was answered."""
        tally = self._status.tally
        tally = tally.model_copy(
            update={
                outcome: getattr(tally, outcome) + 1,
                # A refusal by the owner's limits (declined) neither breaks the row nor adds to it.
                "failed_in_a_row": {"taken": 0, "failed": tally.failed_in_a_row + 1}.get(
                    outcome, tally.failed_in_a_row
                ),
                "training_seconds": round(tally.training_seconds + seconds, 3),
            }
        )
        self._status = self._status.model_copy(update={"tally": tally})
        try:
            write_atomically(self._path, tally.model_dump_json().encode())
        except OSError as error:
            self._log.log_event("tally_not_written", reason=error.strerror)

    def _load(self) -> Tally:
        try:
            return Tally.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return Tally()
