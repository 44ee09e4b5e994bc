"""The trainer: from a round's announcement to this device's one answer to it.

accessControl: pubsub PublishToTopic ``fedgrass/trainer/status``, SubscribeToTopic ``fedgrass/model/active`` and
``fedgrass/application/status``; mqttproxy SubscribeToIoTCore ``fedgrass/<fleet>/round`` and, of this device's topics,
``…/command``, PublishToIoTCore ``…/update`` and ``…/reply``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Literal

from components.trainer.answers import Answers
from components.trainer.attempts import Attempts
from components.trainer.commands import TrainerCommands
from components.trainer.consent import Consent
from components.trainer.counting import AGAIN_AFTER_TROUBLE_SECONDS, Counting
from components.trainer.deferral import Deferral
from components.trainer.drift_watch import DriftWatch
from components.trainer.fine_tuning import FineTuning
from components.trainer.job import Job, Settings
from components.trainer.known import known_model
from components.trainer.losses import LOSSES, KeptLosses
from components.trainer.rounds import Rounds
from components.trainer.runner import Runner
from components.trainer.status import StatusBoard
from components.trainer.task import HELPER, Report, Result
from fedgrass.edge.child import Child, Running
from fedgrass.edge.commands import Commands
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.resource_policy import ResourcePolicy
from fedgrass.edge.settings import TrainerSettings
from fedgrass.edge.streams import StreamManagerStreams, Streams
from fedgrass.edge.system import Sensors
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.errors import DataError, IpcError, MessageError
from fedgrass.protocol.device_messages import ApplicationStatus
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import (
    APPLICATION_TOPIC,
    MODEL_ACTIVE_TOPIC,
    MODEL_DEPLOYER_COMMANDS,
    TRAINER,
    TRAINER_COMMANDS,
    device_topic,
    round_topic,
)

# Until an answer that could not be kept is looked at again.
_RECHECK_SECONDS = 10.0
# For the job's thread, whose child has three seconds to stop.
_STOP_SECONDS = 5.0


class Trainer:
    """The component; its methods run on the device's loop unless they say otherwise."""

    def __init__(
        self,
        device: Device,
        *,
        connect: Callable[[], Streams] = StreamManagerStreams,
        start_child: Callable[[], Running] = lambda: Child("components.trainer.work", str(os.getpid())),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._loop = device.loop
        self._ipc = device.ipc
        self._settings = Configuration(device, TRAINER, TrainerSettings)
        runtime, trainer = self._settings.runtime, self._settings.own
        self._log = device.log.bind(fleet=runtime.fleet)
        self._guard = ResourcePolicy(lambda: self._settings.own, Sensors(device.work).read)
        self._now = Settings(device.thing, device.work, device.store, runtime, trainer)
        self._store = ModelStore(device.store)
        self._runner = Runner(start_child, self._guard, self._log, self._ipc)
        self._losses = KeptLosses(device.work / LOSSES, self._log)
        self._rounds = Rounds(
            device.work / "round.json",
            fleet=runtime.fleet,
            thing=device.thing,
            log=self._log,
            loss=self._losses.counting_for,
            tags=lambda: self._settings.runtime.tags,
        )
        self._attempts = Attempts(device.work / "attempts" / "round.json")
        self._outbox = Outbox(device.work / "outbox", device.ipc.publish_cloud, self._log)
        self._uploads = Uploads(
            device.work / "uploads",
            connect,
            self._upload_ended,
            self._log,
            max_bytes=trainer.max_waiting_uploads_mb << 20,
        )
        self._consent = Consent(device.work, lambda: self._settings.own, self._guard, self._uploads.room)
        self._job: Job | None = None
        self._deferral = Deferral(clock)
        self._data_problem = ""
        self._counting = Counting(clock)
        self._stopping = threading.Event()
        self._status = StatusBoard(
            device.work / "tally.json",
            device.ipc,
            self._log,
            version=version_of(TRAINER, __file__),
            problem=lambda: self._consent.objection() or self._data_problem,
            clock=clock,
        )
        self._answers = Answers(
            device,
            device_topic(runtime.fleet, device.thing, "update"),
            self._rounds,
            self._outbox,
            self._uploads,
            self._consent,
            self._losses,
            self._status,
            self._log,
        )
        self._commands = self._command_handler()
        self._drift = self._drift_watch(clock)
        self._fine_tuning = self._fine_tuner(clock)

    def _command_handler(self) -> TrainerCommands:
        commands = Commands(
            self._device.work / "commands",
            self._outbox,
            self._log,
            fleet=self._settings.runtime.fleet,
            thing=self._device.thing,
            kinds=TRAINER_COMMANDS,
            elsewhere=MODEL_DEPLOYER_COMMANDS,
        )
        return TrainerCommands(
            commands,
            lambda: self._now,
            self._uploads,
            self._runner,
            self._guard,
            Attempts(self._device.work / "attempts" / "command.json"),
            self._log,
            privacy=lambda: self._consent.against_exact_answers(self._rounds.newest),
        )

    def _drift_watch(self, clock: Callable[[], float]) -> DriftWatch:
        return DriftWatch(
            self._loop,
            self._runner,
            self._guard,
            self._log,
            settings=lambda: self._now,
            newest=lambda: self._rounds.newest,
            objection=lambda: self._consent.against_exact_answers(self._rounds.newest),
            busy=lambda: self._job is not None,
            told=self._status.drifted,
            stopping=self._stopping,
            clock=clock,
        )

    def _fine_tuner(self, clock: Callable[[], float]) -> FineTuning:
        return FineTuning(
            self._device,
            self._runner,
            self._guard,
            self._log,
            settings=lambda: self._now,
            objection=lambda: self._consent.against_figures(self._rounds.newest),
            busy=lambda: self._job is not None,
            ended=self._count_examples,
            clock=clock,
        )

    def start(self) -> None:
        """Take up what a former process left, and listen."""
        # First of all: what follows must not work on a round that was answered.
        self._answers.reconcile()
        self._show_helper_key()
        self._outbox.start()
        self._uploads.start()
        self._commands.start()
        self._count_examples()
        if (unfinished := self._rounds.unfinished()) is not None:
            self._log.log_event("training_resumed", round=unfinished.round)
            self._work_on(unfinished)
        # SDK callbacks come on other threads; everything that they cause is done on the loop.
        post, fleet = self._loop.post, self._settings.runtime.fleet
        self._ipc.on_cloud(round_topic(fleet), lambda payload: post(lambda: self.announced(payload)))
        self._ipc.on_local(MODEL_ACTIVE_TOPIC, lambda _payload: post(self._model_is_active))
        self._ipc.on_cloud(
            device_topic(fleet, self._device.thing, "command"),
            lambda payload: post(lambda: self._commands.received(payload)),
        )
        self._ipc.on_local(APPLICATION_TOPIC, lambda payload: post(lambda: self.application_said(payload)))
        self._ipc.on_component_update(lambda deployment: post(lambda: self.update_requested(deployment)))
        self._settings.follow(self._settings_changed)
        # Before the first status: after a restart in a private round the examples must not be told once.
        if (newest := self._rounds.newest) is not None:
            self._status.hides_figures(private=newest.update.hides_figures)
        self._status.publish()
        self._loop.every(lambda: self._settings.own.status_seconds, self._status.publish)
        self._drift.start()
        self._fine_tuning.start()

    def stop(self) -> None:
        """Stop training after the batch at hand, with all that was done on disk; a batch that takes too long is lost."""
        self._stopping.set()
        self._fine_tuning.stop()
        if self._job is not None:
            self._job.cancel()
        self._outbox.stop()
        self._uploads.stop()
        self._commands.stop()
        if self._job is not None:
            self._job.join(_STOP_SECONDS)
        self._commands.join(_STOP_SECONDS)
        self._fine_tuning.join(_STOP_SECONDS)

    def announced(self, payload: bytes) -> None:
        """Take in what the round topic says; nothing in it means that no round is open."""
        # An empty message clears the retained announcement. One that is for helpers means as much to everybody else:
        # updates are taken no more.
        if not payload or self._commands.asked_to_sum(payload):
            self._rounds.closed()
            if self._is_behind():
                return
            self._drop_job()
            if self._status.state in ("training", "waiting"):
                self._status.say("idle", None)
            return
        announcement = self._rounds.announced(payload)
        if self._is_behind():
            return  # the newest round comes when the one at hand is answered
        if announcement is not None:
            self._work_on(announcement)
        elif self._job is not None and self._rounds.phase != "open":
            self._drop_job()  # a newer round that this device is not part of has begun
            self._status.say("idle", None)

    def _is_behind(self) -> bool:
        """Whether the job at hand is for a round that is over, and goes on because its update counts in a later one."""
        return self._job is not None and self._job.announcement == self._rounds.behind

    def _model_is_active(self) -> None:
        self._count_examples()
        self._fine_tuning.look()

    def application_said(self, payload: bytes) -> None:
        """Take in whether the application is busy."""
        try:
            self._guard.application_said(ApplicationStatus.decode(payload))
        except MessageError as error:
            self._log.log_event("local_message_ignored", reason=str(error))

    def update_requested(self, deployment: str) -> None:
        """Answer a component update: later while training, within the bound; at once otherwise."""
        busy, most = self._job is not None, self._settings.own.defer_seconds
        wait = self._deferral.seconds(deployment, busy=busy, most=most)
        self._log.log_event("component_update_answered", deployment=deployment, deferred_seconds=wait)
        try:
            self._ipc.defer(deployment, int(wait * 1000))
        except IpcError as error:
            self._log.log_event("component_update_not_answered", error=str(error))

    def _settings_changed(self) -> None:
        """Use changed settings from the next round on."""
        self._now = self._now.changed(self._settings.runtime, self._settings.own)
        self._show_helper_key()
        self._count_examples()

    def _show_helper_key(self) -> None:
        """Make a helper's key the first time, and have the heartbeat tell its public half: it is to be pinned."""
        if not self._settings.own.helper:
            self._status.helps("")
            return
        from fedgrass.secure.keys import helper_key, public_text

        try:
            self._status.helps(public_text(helper_key(self._device.work / HELPER)))
        except (OSError, DataError) as error:
            self._log.log_event("helper_key_not_kept", reason=str(error))

    def _work_on(self, announcement: Announcement) -> None:
        if self._job is not None:
            # A retained message comes again with every reconnection.
            if self._job.announcement == announcement:
                return
            self._drop_job()
        self._status.hides_figures(private=announcement.update.hides_figures)
        if objection := self._consent.against(announcement):
            self._answer(announcement, Result(status="declined", reason=as_reason(objection)))
            return
        self._status.say("waiting", announcement)
        job: Job

        # Both run on the job's thread, and so only post. They name the job, for the answer of one that was dropped
        # meanwhile is nobody's.
        def told(report: Report) -> None:
            self._loop.post(lambda: self._told(job, report))

        def ended(result: Result) -> None:
            self._loop.post(lambda: self._job_ended(job, result))

        job = Job(
            announcement,
            self._now,
            self._runner,
            self._guard,
            self._attempts,
            # Read here: the job's thread must not read what this one writes.
            time_left=self._rounds.time_left(announcement),
            told=told,
            ended=ended,
        )
        self._job = job
        job.start()

    def _drop_job(self) -> None:
        """Let go of the job at hand. Its thread ends after the batch; what it still says is not listened to."""
        if self._job is not None:
            self._log.log_event("training_dropped", round=self._job.announcement.round)
            self._job.drop()
            self._job = None

    def _told(self, job: Job, report: Report) -> None:
        if job is not self._job:
            return
        if report.say == "progress":
            self._data_problem = ""
            self._status.say("training", job.announcement, epoch=report.epoch, examples=report.examples)
        else:
            self._status.say("waiting", job.announcement, reason=report.reason)

    def _job_ended(self, job: Job, result: Result) -> None:
        # A dropped job's end changes nothing: another round is at hand, or none.
        if job is not self._job:
            return
        self._job = None
        if result.status != "stopped":
            self._answer(job.announcement, result)
            # An engine that failed in a round is tried again by the next count, so that the heartbeat tells before
            # the next round.
            if result.status == "failed":
                self._counting.doubt()
            self._count_examples()

    def _answer(self, announcement: Announcement, result: Result) -> None:
        if not self._answers.give(announcement, result):
            # Kept open: the checkpoint is whole, so the answer comes again soon without training again.
            self._loop.later(_RECHECK_SECONDS, lambda: self._answer_again(announcement))
        elif announcement.max_age:
            self._loop.post(self._take_newest)  # after all that this answer still asks for

    def _take_newest(self) -> None:
        """Begin with the round that opened while an earlier one was at hand."""
        if self._job is None and (newest := self._rounds.unfinished()) is not None:
            self._work_on(newest)

    def _answer_again(self, announcement: Announcement) -> None:
        if self._job is None and self._rounds.unfinished() == announcement:
            self._work_on(announcement)

    def _upload_ended(self, upload: Upload, outcome: Literal["uploaded", "failed"], reason: str) -> None:
        """Runs on the uploads' thread."""
        if upload.name.startswith("command-"):
            self._commands.uploaded(upload, outcome, reason)
            return
        self._answers.uploaded(upload, outcome, reason)

    def _count_examples(self) -> None:
        """Learn how many examples there are, and whether the engine opens, once there is a model; on a thread: it may be slow."""
        if self._job is not None or (model := known_model(self._store, self._now.work)) is None:
            return
        # Each count would have it begin anew; where nothing is known yet, it is first.
        if self._fine_tuning.works and self._status.examples:
            return
        settings, counting = self._now, self._counting
        if not counting.is_due(settings.runtime, model, problem=bool(self._data_problem)):
            return
        task = settings.task(tries_engine=counting.tries_engine)

        def count() -> None:
            result = self._runner.run(task, self._stopping, what="while counting the examples")
            if result.status != "stopped":
                self._loop.post(lambda: self._counted(result.num_examples, result.reason))

        threading.Thread(target=count, name="count", daemon=True).start()

    def _counted(self, examples: int, problem: str) -> None:
        self._counting.ended(problem=bool(problem))
        if problem:  # what is missing may come without a word
            self._loop.later(AGAIN_AFTER_TROUBLE_SECONDS, self._count_examples)
        if (examples, problem) != (self._status.examples, self._data_problem):
            self._data_problem = problem
            self._status.has_examples(examples)
