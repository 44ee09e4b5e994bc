"""The trainer: from a round's announcement to this device's one answer to it.

accessControl: pubsub PublishToTopic ``fedgrass/trainer/status``, SubscribeToTopic ``fedgrass/model/active`` and
``fedgrass/application/status``; mqttproxy SubscribeToIoTCore ``fedgrass/<fleet>/round`` and, of this device's topics,
``…/command``, PublishToIoTCore ``…/update`` and ``…/reply``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from components.trainer.attempts import MOST_DEATHS, Attempts, died
from components.trainer.desk import CommandDesk
from components.trainer.job import Job, Outcome, Workshop
from components.trainer.rounds import Rounds, answer_key
from components.trainer.status import StatusBoard
from fedgrass import data
from fedgrass.answer import Refusal, notice_of
from fedgrass.downloads import ObjectStore
from fedgrass.edge.commands import Commands
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.downloads import s3_client
from fedgrass.edge.guard import Guard
from fedgrass.edge.memory import give_back
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.settings import TrainerSettings
from fedgrass.edge.streams import StreamManagerStreams, Streams
from fedgrass.edge.system import Sensors
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.errors import DataError, IpcError, MessageError, TransferError
from fedgrass.protocol.exposure import against_exact_answers, against_round
from fedgrass.protocol.messages import Announcement, ApplicationStatus, UpdateNotice
from fedgrass.protocol.names import (
    APPLICATION_TOPIC,
    MODEL_ACTIVE_TOPIC,
    MODEL_DEPLOYER_COMMANDS,
    TRAINER,
    TRAINER_COMMANDS,
    device_topic,
    round_topic,
    update_key,
)
from fedgrass.training import Evaluated, Trained

_RECHECK_SECONDS = 10.0
_STOP_SECONDS = 3.0


class Trainer:
    """The component; its methods run on the device's loop unless they say otherwise."""

    def __init__(
        self,
        device: Device,
        *,
        connect: Callable[[], Streams] = StreamManagerStreams,
        s3: Callable[[], ObjectStore] = s3_client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._loop = device.loop
        self._ipc = device.ipc
        self._clock = clock
        self._settings = Configuration(device, TRAINER, TrainerSettings)
        runtime, trainer = self._settings.runtime, self._settings.own
        self._log = device.log.bind(fleet=runtime.fleet)
        self._topic = device_topic(runtime.fleet, device.thing, "update")
        self._guard = Guard(lambda: self._settings.own, Sensors(device.work).read)
        self._workshop = Workshop(
            device.thing, device.work, ModelStore(device.store), runtime, trainer, self._guard, s3, self._log
        )
        self._rounds = Rounds(device.work / "round.json", fleet=runtime.fleet, thing=device.thing, log=self._log)
        self._attempts = Attempts(device.work / "attempts" / "round.json")
        self._outbox = Outbox(device.work / "outbox", device.ipc.publish_cloud, self._log)
        self._uploads = Uploads(
            device.work / "uploads",
            connect,
            self._upload_ended,
            self._log,
            max_bytes=trainer.max_waiting_uploads_mb << 20,
        )
        self._job: Job | None = None
        self._deferred_since: dict[str, float] = {}
        self._data_problem = ""
        self._data_in_use = threading.Lock()
        self._status = StatusBoard(
            device.work / "tally.json",
            device.ipc,
            self._log,
            version=version_of(TRAINER, __file__),
            problem=lambda: self._objection() or self._data_problem,
        )
        commands = Commands(
            device.work / "commands",
            self._outbox,
            self._log,
            fleet=runtime.fleet,
            thing=device.thing,
            kinds=TRAINER_COMMANDS,
            elsewhere=MODEL_DEPLOYER_COMMANDS,
        )
        self._desk = CommandDesk(
            commands,
            lambda: self._workshop,
            self._uploads,
            self._data_in_use,
            privacy=lambda: against_exact_answers(self._rounds.newest, least=self._settings.own.min_noise_multiplier),
        )

    def start(self) -> None:
        """Take up what a former process left, and listen."""
        self._reconcile()
        self._outbox.start()
        self._uploads.start()
        self._desk.start()
        self._count_examples()
        if (unfinished := self._rounds.unfinished()) is not None:
            self._log.info("resuming", round=unfinished.round)
            self._work_on(unfinished)
        post, fleet = self._loop.post, self._settings.runtime.fleet
        self._ipc.on_cloud(round_topic(fleet), lambda payload: post(lambda: self.announced(payload)))
        self._ipc.on_local(MODEL_ACTIVE_TOPIC, lambda _payload: post(self._count_examples))
        self._ipc.on_cloud(
            device_topic(fleet, self._device.thing, "command"),
            lambda payload: post(lambda: self._desk.received(payload)),
        )
        self._ipc.on_local(APPLICATION_TOPIC, lambda payload: post(lambda: self.application_said(payload)))
        self._ipc.on_component_update(lambda deployment: post(lambda: self.update_requested(deployment)))
        self._settings.follow(self._settings_changed)
        self._status.publish()
        self._loop.every(lambda: self._settings.own.status_seconds, self._status.publish)

    def stop(self) -> None:
        """Stop training after the batch at hand, with all that was done on disk; a batch that takes too long is lost."""
        if self._job is not None:
            self._job.cancel()
        self._outbox.stop()
        self._uploads.stop()
        self._desk.stop()
        if self._job is not None:
            self._job.join(_STOP_SECONDS)
            self._attempts.rests()

    def announced(self, payload: bytes) -> None:
        """Take in what the round topic says; nothing in it means that no round is open."""
        if not payload:
            self._rounds.closed()
            self._drop_job()
            if self._status.state in ("training", "waiting"):
                self._status.say("idle", None)
            return
        announcement = self._rounds.announced(payload)
        if announcement is not None:
            self._work_on(announcement)
        elif self._job is not None and self._rounds.phase != "open":
            self._drop_job()  # a newer round that this device is not part of has begun
            self._status.say("idle", None)

    def application_said(self, payload: bytes) -> None:
        """Take in whether the application is busy."""
        try:
            self._guard.application_said(ApplicationStatus.decode(payload))
        except MessageError as error:
            self._log.once("local message ignored", reason=str(error))

    def update_requested(self, deployment: str) -> None:
        """Answer a component update: later while training, within the bound; at once otherwise."""
        since = self._deferred_since.setdefault(deployment, self._clock())
        left = self._settings.own.defer_seconds - (self._clock() - since)
        wait = min(left, _RECHECK_SECONDS) if self._job is not None and left > 0 else 0.0
        if wait == 0:
            self._deferred_since.pop(deployment, None)
        self._log.info("component update", deployment=deployment, deferred_seconds=wait)
        try:
            self._ipc.defer(deployment, int(wait * 1000))
        except IpcError as error:
            self._log.once("cannot answer a component update", error=str(error))

    def _settings_changed(self) -> None:
        """Use changed settings from the next round on."""
        self._workshop = replace(self._workshop, runtime=self._settings.runtime, settings=self._settings.own)
        self._count_examples()

    def _reconcile(self) -> None:
        """A crash may come between handing an answer on and noting it: look where the answer went."""
        if (unfinished := self._rounds.unfinished()) is not None:
            key = answer_key(unfinished)
            if self._uploads.waits(key) or self._outbox.knows(key):
                self._rounds.answered(unfinished)

    def _work_on(self, announcement: Announcement) -> None:
        if self._job is not None:
            if self._job.announcement == announcement:
                return
            self._drop_job()
        exposure = against_round(announcement, least=self._settings.own.min_noise_multiplier)
        if objection := exposure or self._uploads.room() or self._shortage():
            self._answer(announcement, Refusal("declined", objection))
            return
        deaths = self._attempts.begins(answer_key(announcement))
        if deaths >= MOST_DEATHS:
            self._attempts.rests()
            self._answer(announcement, Refusal("declined", died(deaths, "in this round")))
            return
        self._status.say("waiting", announcement)
        job: Job

        def progressed(epoch: int, examples: int) -> None:
            self._loop.post(lambda: self._progressed(job, epoch, examples))

        def paused(reason: str) -> None:
            self._loop.post(lambda: self._paused(job, reason))

        def ended(outcome: Outcome) -> None:
            self._loop.post(lambda: self._job_ended(job, outcome))

        job = Job(announcement, self._workshop, self._data_in_use, progressed=progressed, paused=paused, ended=ended)
        self._job = job
        job.start()

    def _drop_job(self) -> None:
        """Let go of the job at hand. Its thread ends after the batch; what it still says is not listened to."""
        if self._job is not None:
            self._log.info("training dropped", round=self._job.announcement.round)
            self._job.drop()
            self._job = None
            self._attempts.rests()

    def _progressed(self, job: Job, epoch: int, examples: int) -> None:
        if job is self._job:
            self._data_problem = ""
            self._status.say("training", job.announcement, epoch=epoch, examples=examples)

    def _paused(self, job: Job, reason: str) -> None:
        if job is self._job:
            self._status.say("waiting", job.announcement, reason=reason)

    def _job_ended(self, job: Job, outcome: Outcome) -> None:
        if job is not self._job:
            return
        self._job = None
        self._attempts.rests()
        if outcome is not None:
            self._answer(job.announcement, outcome)
            self._count_examples()
        give_back()

    def _answer(self, announcement: Announcement, outcome: Trained | Evaluated | Refusal) -> None:
        """Hand the round's one answer on, then note that; in this order, so that a crash between repeats it by its key."""
        key, notice = answer_key(announcement), notice_of(announcement, self._device.thing, outcome).encode()
        try:
            if not isinstance(outcome, Trained):
                self._outbox.put(key, self._topic, notice)
            else:
                where = update_key(announcement.fleet, announcement.round, self._device.thing)
                bucket = announcement.upload.bucket
                self._uploads.submit(key, self._workshop.update, bucket=bucket, key=where, message=notice.decode())
        except TransferError as error:
            # Kept open: the checkpoint is whole, so the answer is had again soon without training again.
            self._log.error("the answer cannot be kept now", round=announcement.round, reason=str(error))
            self._status.say("waiting", announcement, reason=str(error))
            self._loop.later(_RECHECK_SECONDS, lambda: self._answer_again(announcement))
            return
        self._rounds.answered(announcement)
        self._workshop.checkpoint.unlink(missing_ok=True)
        if isinstance(outcome, Refusal):
            self._log.warning("round " + outcome.status, round=announcement.round, reason=outcome.reason)
            self._status.counted(outcome.status)
            self._status.say(outcome.status, announcement, reason=outcome.reason)
        elif isinstance(outcome, Evaluated):
            self._log.info("evaluated", round=announcement.round, metrics=outcome.metrics)
            self._status.counted("taken", 0.0)
            self._status.say("idle", None)
        else:
            self._status.counted("taken", outcome.seconds)
            self._log.info("trained", round=announcement.round, seconds=outcome.seconds, metrics=outcome.metrics)
            self._status.say("uploading", announcement)

    def _answer_again(self, announcement: Announcement) -> None:
        if self._job is None and self._rounds.unfinished() == announcement:
            self._work_on(announcement)

    def _upload_ended(self, upload: Upload, outcome: Literal["uploaded", "failed"], reason: str) -> None:
        """Runs on the uploads' thread."""
        if upload.name.startswith("command-"):
            self._desk.uploaded(upload, outcome, reason)
            return
        notice = UpdateNotice.decode(upload.message.encode())
        if outcome == "failed":
            notice = notice.model_copy(update={"status": "failed", "reason": reason, "key": None})
        self._outbox.put(upload.name, self._topic, notice.encode())
        self._loop.post(lambda: self._uploaded(notice))

    def _uploaded(self, notice: UpdateNotice) -> None:
        if self._status.state == "uploading" and self._status.round == notice.round:
            self._status.say("idle", None)

    def _objection(self) -> str:
        hold = self._guard.hold()
        return hold.reason if hold is not None else self._uploads.room()

    def _shortage(self) -> str:
        hold = self._guard.hold()
        return hold.reason if hold is not None and hold.action == "decline" else ""

    def _count_examples(self) -> None:
        """Learn how many examples there are, once a model says what they must be; on a thread, as loaders may be slow."""
        workshop = self._workshop
        if self._job is not None or (model := workshop.store.active()) is None:
            return

        def count() -> None:
            with self._data_in_use:
                try:
                    found, problem = len(data.load(workshop.runtime.data, model.manifest).train), ""
                except DataError as error:
                    found, problem = 0, str(error)
            self._loop.post(lambda: self._counted(found, problem))

        threading.Thread(target=count, name="count", daemon=True).start()

    def _counted(self, examples: int, problem: str) -> None:
        if (examples, problem) != (self._status.examples, self._data_problem):
            self._data_problem = problem
            self._status.has_examples(examples)
