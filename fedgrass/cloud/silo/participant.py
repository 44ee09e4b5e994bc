"""A silo in a fleet's rounds: what trainer, heartbeat and model deployer are on a device, without a device.

Only S3 and IoT Core's HTTPS endpoint lie between the accounts: no network is peered. The fleet's silo role bounds what it may
do to its own name (cloud/template.yaml, SiloRole).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass import data as loaders
from fedgrass.answer import Answer, notice_of
from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.cloud.fleet_access import MISSING, FleetAccess
from fedgrass.control import ControlFiles, fetch_control
from fedgrass.data import DataSettings, Split
from fedgrass.downloads import fetch_bundle
from fedgrass.engines.base import Engine
from fedgrass.engines.flower_node import Node, join
from fedgrass.engines.registry import open_engine
from fedgrass.errors import DataError, FedgrassError, PrivacyLimitError, TransferError
from fedgrass.evaluating import Evaluated, evaluate
from fedgrass.floors import Floors
from fedgrass.logs import Log
from fedgrass.own_code import own_code
from fedgrass.partial import Ending, ending_of, lasts
from fedgrass.personal import OWN, Own
from fedgrass.personal_models import FOLDER
from fedgrass.profile.device import Measured, fetch_profile, measure, task_of
from fedgrass.protocol.cohort import fits, is_asked
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.exposure import against_round
from fedgrass.protocol.message import Message
from fedgrass.protocol.messages import Announcement, Base, ModelNotice
from fedgrass.protocol.names import DeviceChannel, device_topic, model_prefix, next_version, update_key
from fedgrass.training import Trained, TrainingFiles, holding, train

_HEARTBEAT_SECONDS = 30.0


@dataclass
class Participant:
    """One silo.

    Parameters
    ----------
    data, engine, builder
        As in the configuration of ``com.fedgrass.Runtime`` on a device.
    work
        Folder for the base model and the update.
    min_noise_multiplier
        The silo declines rounds whose updates carry less noise, as a device does with its ``minNoiseMultiplier``.
    floors
        The least that it trains on.
    max_bundle_mb
        Largest model that is downloaded.
    poll_seconds
        How often it looks for a round.
    """

    access: FleetAccess
    fleet: str
    silo: str
    data: DataSettings
    engine: str
    builder: str
    work: Path
    min_noise_multiplier: float = 0.0
    floors: Floors = field(default_factory=Floors)
    max_bundle_mb: int = 2048
    poll_seconds: float = 5.0
    _answered: set[tuple[int, str]] = field(default_factory=set)
    _rounds: set[int] = field(default_factory=set)
    _expected: str | None = None  # version that the last round makes, if it releases one
    _bucket: str = ""

    def __post_init__(self) -> None:
        self._log = Log(__name__, fleet=self.fleet, thing=self.silo)

    def take_part(self, *, rounds: int, wait_seconds: float) -> None:
        """Answer as many rounds, and wait for the last one's model. A round that is declined counts as answered.

        Raises
        ------
        TransferError
            If no round came within ``wait_seconds``.
        FedgrassError
            If this silo cannot train; the fleet was told.
        """
        with self._heard():
            self._take_part(rounds, wait_seconds)

    def _take_part(self, rounds: int, wait_seconds: float) -> None:
        # Counted again after each round: it bounds the wait for the next one, not the job.
        until = self.access.clock() + wait_seconds
        # No `poll`: each turn may do a round's work, and puts the end off.
        while len(self._rounds) < rounds or self._expected is not None:
            announcement = self._announcement()
            if announcement is not None:
                self._answer(announcement)
                until = self.access.clock() + wait_seconds
            elif self._expected is not None:
                self._look_for_model(self._expected)
            if self.access.clock() > until:
                if len(self._rounds) >= rounds:
                    return  # its round released no model
                raise TransferError(
                    f"fleet {self.fleet!r}: no round was open to {self.silo!r} within {wait_seconds:g} s; start the round "
                    "within that time after this job has started"
                )
            self.access.sleep(self.poll_seconds)

    def _announcement(self) -> Announcement | None:
        """The open round, if it is one that this silo is asked in and has not answered."""
        found = self.access.announcement(self.fleet)
        if found is None:
            return None
        # A task for the helpers of secure aggregation: to everybody else the round is closed. It has no masks, so a silo
        # that took it for a round would train and upload its update in clear.
        if found.task == "sum":
            return None
        if (found.round, found.opened_at.isoformat()) in self._answered:
            return None
        # A silo has no tags, so it is asked only in rounds that want none.
        # A job knows nothing of what an earlier one reported, so where losses choose, a silo is asked by its lot alone.
        return found if is_asked(found.cohort, self.silo, None) and fits(found.cohort.where, {}) else None

    def _answer(self, announcement: Announcement) -> None:
        """Do what is asked for and answer, or say why there is no answer; either way the round is answered."""
        # First: a round that fails must not be tried for ever.
        self._answered.add((announcement.round, announcement.opened_at.isoformat()))
        self._rounds.add(announcement.round)
        if announcement.task == "fit":
            self._expected = next_version(announcement.base.version, announcement.round)
            self._bucket = announcement.upload.bucket
        # Before the model is downloaded and the data are read.
        exposure = against_round(announcement, least=self.min_noise_multiplier)
        if exposure:
            self._log.log_event("round_declined", round=announcement.round, reason=exposure)
            self._tell("update", notice_of(announcement, self.silo, Answer("declined", exposure)))
            return
        try:
            outcome = self._outcome(announcement)
        except FedgrassError as error:
            status: Literal["declined", "failed"] = (
                "declined" if isinstance(error, (DataError, PrivacyLimitError)) else "failed"
            )
            self._tell("update", notice_of(announcement, self.silo, Answer(status, str(error))))
            raise
        # The object before the notice: a notice promises that the update is there.
        if outcome.answer.status == "uploaded":
            key = update_key(self.fleet, announcement.round, self.silo)
            with self._update.open("rb") as file:
                self.access.s3.put_object(Bucket=announcement.upload.bucket, Key=key, Body=file)
        self._tell("update", notice_of(announcement, self.silo, outcome.answer))
        self._log.log_event(
            "silo_answered", round=announcement.round, task=announcement.task, examples=outcome.num_examples
        )

    def _outcome(self, announcement: Announcement) -> Trained | Evaluated | Measured:
        if announcement.task == "statistics":
            return self._measure(announcement)
        return self._evaluate(announcement) if announcement.task == "evaluate" else self._train(announcement)

    def _measure(self, announcement: Announcement) -> Measured:
        bundle, most = self._bundle(announcement, announcement.base), self.max_bundle_mb << 20
        named, bucket = task_of(announcement).profile, announcement.upload.bucket
        earlier = fetch_profile(self.access.s3, bucket, named, self.work, max_bytes=most) if named else None
        with own_code("reading the data"):
            examples = loaders.load(self.data.keeping_missing(), bundle.manifest).train
        return measure(examples, bundle.manifest, announcement, self.silo, self._update, earlier)

    @property
    def _update(self) -> Path:
        return self.work / "update.safetensors"

    @property
    def _own(self) -> Path:
        return self.work / OWN

    def _train(self, announcement: Announcement) -> Trained:
        bundle = self._bundle(announcement, announcement.base)
        data = self._examples(bundle)
        self.floors.require(data.train, announcement.fit, bundle.manifest)
        return train(
            lambda: self._engine(bundle, announcement),
            bundle,
            data,
            announcement,
            self.silo,
            TrainingFiles(
                self._update,
                self.work / "checkpoint.safetensors",
                self.work / "residual.safetensors",
                self._control(announcement, bundle),
                self._own,
                self.work / FOLDER,
            ),
            ending=self._ending(announcement, data, bundle.manifest.batch_size),
        )

    def _ending(self, announcement: Announcement, data: Split, batch_size: int) -> Ending | None:
        seconds, least = lasts(announcement), (self.floors.examples, self.floors.steps)
        if seconds is None:
            return None
        until = announcement.opened_at.timestamp() + seconds
        return ending_of(data.train, announcement.fit, batch_size, lambda: time.time() >= until, least=least)

    def _control(self, announcement: Announcement, bundle: Bundle) -> ControlFiles | None:
        if announcement.fit.control is None:
            return None
        bucket, manifest = announcement.upload.bucket, bundle.manifest
        server = fetch_control(self.access.s3, bucket, announcement, manifest, self.work)
        return ControlFiles(self.work / "control.safetensors", server)

    def _evaluate(self, announcement: Announcement) -> Evaluated:
        bundle, compared = self._bundle(announcement, announcement.base), announcement.compare
        own = Own.of(bundle.manifest, self._own)
        return evaluate(
            holding(self._engine(bundle, announcement), bundle, own),
            self._examples(bundle),
            own.over(self._bundle(announcement, compared).parameters()) if compared is not None else None,
        )

    def _examples(self, bundle: Bundle) -> Split:
        with own_code("reading the data"):
            return loaders.load(self.data, bundle.manifest)

    def _bundle(self, announcement: Announcement, base: Base) -> Bundle:
        folder = self.work / f"{base.version}-{base.parameters_sha256[:16]}"
        bucket = announcement.upload.bucket
        return fetch_bundle(self.access.s3, bucket, base, folder, max_bytes=self.max_bundle_mb << 20)

    def _engine(self, bundle: Bundle, asked: Announcement) -> Engine:
        engine = open_engine(self.engine, bundle, builder=self.builder)
        return join(engine, Node(self.silo, {"thing": self.silo}, self.work / "flower", asked.round, asked.fit.config))

    def _look_for_model(self, version: str) -> None:
        """Tell the fleet that the round's model has reached this silo, so that its round does not wait for it."""
        try:
            # The manifest is uploaded last, so a model that has one is complete.
            self.access.s3.head_object(Bucket=self._bucket, Key=model_prefix(self.fleet, version) + MANIFEST)
        except ClientError as error:
            if error.response["Error"]["Code"] not in MISSING:
                raise
            return
        # Once: the round counts each participant's word on the model once.
        self._expected = None
        self._tell(
            "model",
            ModelNotice(fleet=self.fleet, thing=self.silo, version=version, outcome="active", active_version=version),
        )

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Send heartbeats inside the block, the first at its start."""
        self._beat()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_HEARTBEAT_SECONDS):
                self._beat_or_tell()

        # A thread of its own: a round's training may last longer than the fleet waits for a sign of life.
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat_or_tell(self) -> None:
        try:
            self._beat()
        except (ClientError, BotoCoreError) as error:
            # The next one may arrive, and a round's work is not lost for it.
            self._log.log_event("heartbeat_lost", error=str(error))

    def _beat(self) -> None:
        beat = Heartbeat(
            fleet=self.fleet,
            thing=self.silo,
            sent_at=datetime.now(timezone.utc),
            interval_seconds=_HEARTBEAT_SECONDS,
        )
        self._tell("heartbeat", beat)

    def _tell(self, channel: DeviceChannel, message: Message) -> None:
        topic = device_topic(self.fleet, self.silo, channel)
        self.access.iot_data.publish(topic=topic, qos=1, payload=message.encode())
