"""A round's one answer, from the end of its work until the cloud has it."""

from __future__ import annotations

from typing import Literal

from components.trainer.consent import Consent
from components.trainer.losses import KeptLosses
from components.trainer.rounds import Rounds, answer_key, answer_of
from components.trainer.status import StatusBoard
from components.trainer.task import CHECKPOINT, UPDATE, Result
from fedgrass.answer import notice_of
from fedgrass.edge.component import Device
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.errors import TransferError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Announcement, UpdateNotice
from fedgrass.protocol.names import update_key


class Answers:
    """Hands each round's answer on, by way of the outbox, or of the uploads if there is a file to it.

    Its methods run on the device's loop unless they say otherwise.

    Parameters
    ----------
    device
        Of whom the answers are.
    topic
        Where IoT Core takes them.
    rounds
        Notes which are answered.
    outbox
        Keeps a notice until IoT Core has it.
    uploads
        Keep an update until S3 has it.
    consent
        Counts what privacy an update spends, and that the device took part.
    losses
        Note which loss was told in which round.
    status
        What the heartbeat tells.
    log
        Of the component.
    """

    def __init__(
        self,
        device: Device,
        topic: str,
        rounds: Rounds,
        outbox: Outbox,
        uploads: Uploads,
        consent: Consent,
        losses: KeptLosses,
        status: StatusBoard,
        log: Log,
    ) -> None:
        self._device = device
        self._topic = topic
        self._rounds = rounds
        self._outbox = outbox
        self._uploads = uploads
        self._consent = consent
        self._losses = losses
        self._status = status
        self._log = log

    def reconcile(self) -> None:
        """Note an answer that a former process had handed on: a crash may come between that and its note."""
        if (unfinished := self._rounds.unfinished()) is not None:
            key = answer_key(unfinished)
            if self._uploads.waits(key) or self._outbox.knows(key):
                self._rounds.answered(unfinished)

    def give(self, announcement: Announcement, result: Result) -> bool:
        """Hand an answer on, then note that; in this order, so that a crash between repeats it by its key.

        Returns
        -------
        bool
            False if there is no room for it now: the round stays open, and its checkpoint whole.
        """
        try:
            self._hand_on(announcement, result)
        except TransferError as error:
            self._log.log_event("answer_not_kept", round=announcement.round, reason=str(error))
            self._status.say("waiting", announcement, reason=str(error))
            return False
        self._rounds.answered(announcement)
        # Only when the answer is safe: until then a restart goes on from it.
        (self._device.work / CHECKPOINT).unlink(missing_ok=True)
        self._tell(announcement, result)
        return True

    def uploaded(self, upload: Upload, outcome: Literal["uploaded", "failed"], reason: str) -> None:
        """Follow up an update that S3 has, or will never have; runs on the uploads' thread."""
        notice = UpdateNotice.decode(upload.message.encode())
        # The notice was written for the update's arrival; without it the round gets a failure in its place.
        if outcome == "failed":
            notice = notice.model_copy(update={"status": "failed", "reason": reason, "key": None})
        self._outbox.put(upload.name, self._topic, notice.encode())
        self._device.loop.post(lambda: self._arrived(notice))

    def _hand_on(self, announcement: Announcement, result: Result) -> None:
        thing, key = self._device.thing, answer_key(announcement)
        notice = notice_of(announcement, thing, answer_of(announcement, result)).encode()
        if result.status != "done" or announcement.task == "evaluate":
            self._outbox.put(key, self._topic, notice)
            return
        # Before the upload is handed over: noise that was not counted must not leave the device.
        self._consent.charge(announcement, key)
        if announcement.task == "fit":
            self._losses.reported(announcement, result.metrics)
        self._uploads.submit(
            key,
            self._device.work / UPDATE,
            bucket=announcement.upload.bucket,
            key=update_key(announcement.fleet, announcement.round, thing),
            message=notice.decode(),
        )

    def _tell(self, announcement: Announcement, result: Result) -> None:
        number, status = announcement.round, self._status
        if result.status in ("declined", "failed"):
            self._log.log_event(
                "round_declined" if result.status == "declined" else "round_failed",
                round=number,
                reason=result.reason,
            )
            status.counted(result.status)
            status.say(result.status, announcement, reason=result.reason)
            return
        if announcement.task == "evaluate":
            self._log.log_event("evaluated", round=number, metrics=result.metrics)
            status.counted("taken", 0.0)
            status.say("idle", None)
            return
        self._consent.took_part()
        status.counted("taken", result.seconds)
        if announcement.task == "statistics":
            self._log.log_event("measured", round=number, examples=result.num_examples)
        else:
            self._log.log_event("trained", round=number, seconds=result.seconds, metrics=result.metrics)
        status.say("uploading", announcement)

    def _arrived(self, notice: UpdateNotice) -> None:
        if self._status.state == "uploading" and self._status.round == notice.round:
            self._status.say("idle", None)
