"""The heartbeat: tells the cloud that this device is alive, how it is, and whether it would train now.

accessControl: pubsub SubscribeToTopic ``fedgrass/trainer/status`` and ``fedgrass/model/active``; mqttproxy PublishToIoTCore
``fedgrass/<fleet>/devices/<thing>/heartbeat``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TypeVar

import fedgrass
from fedgrass.edge import system
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.settings import HeartbeatSettings
from fedgrass.errors import MessageError
from fedgrass.protocol import messages
from fedgrass.protocol.messages import ActiveModel, Message, TrainerStatus
from fedgrass.protocol.names import (
    HEARTBEAT,
    MODEL_ACTIVE_TOPIC,
    MODEL_DEPLOYER,
    RUNTIME,
    TRAINER,
    TRAINER_STATUS_TOPIC,
    device_topic,
)

M = TypeVar("M", bound=Message)

_JITTER = 0.1
_SILENCE_SECONDS = 120.0


class Heartbeat:
    """The component; its methods run on the device's loop.

    Component versions come from what each component says of itself on the device, for a component may not ask the nucleus
    about others: the runtime's is that of the library at hand.
    """

    def __init__(
        self, device: Device, *, clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None
    ) -> None:
        self._device = device
        self._ipc = device.ipc
        self._clock = clock
        self._rng = rng or random.Random(device.thing)  # noqa: S311 - spreads load, keeps no secret
        self._settings = Configuration(device, HEARTBEAT, HeartbeatSettings)
        self._fleet = self._settings.runtime.fleet
        self._log = device.log.bind(fleet=self._fleet)
        self._outbox = Outbox(device.work / "outbox", device.ipc.publish_cloud, self._log)
        self._store = ModelStore(device.store)
        self._trainer: TrainerStatus | None = None
        self._trainer_heard = 0.0
        self._deployer_version = ""
        self._said_able: bool | None = None
        self._version = version_of(HEARTBEAT, __file__)

    def start(self) -> None:
        """Listen, and beat: the first time at once, then at the interval less or more a tenth."""
        post = self._device.loop.post
        self._ipc.on_local(TRAINER_STATUS_TOPIC, lambda payload: post(lambda: self.trainer_said(payload)))
        self._ipc.on_local(MODEL_ACTIVE_TOPIC, lambda payload: post(lambda: self.deployer_said(payload)))
        self._settings.follow()
        self._outbox.start()
        self.beat()
        self._device.loop.every(self._interval, self.beat)

    def stop(self) -> None:
        """Stop."""
        self._outbox.stop()

    def beat(self) -> None:
        """Send a heartbeat; one that could not be sent yet is replaced by it."""
        able, reason = self._ability()
        self._said_able = able
        reading = system.read(self._device.work)
        active = self._store.active()
        trainer = self._trainer or TrainerStatus()
        heartbeat = messages.Heartbeat(
            fleet=self._fleet,
            thing=self._device.thing,
            sent_at=datetime.now(timezone.utc),
            interval_seconds=self._settings.own.interval_seconds,
            able=able,
            reason=reason,
            cpu_percent=reading.cpu_percent,
            load=round(reading.load, 3),
            memory_percent=reading.memory_percent,
            disk_free_bytes=reading.disk_free_bytes,
            examples=trainer.examples,
            model_version=active.manifest.version if active else None,
            trainer=trainer
            if able
            else trainer.model_copy(update={"reason": ""}),  # said above; keeps within the bound
            components=self._components(),
        )
        topic = device_topic(self._fleet, self._device.thing, "heartbeat")
        self._outbox.put_newest("heartbeat", topic, heartbeat.encode())

    def trainer_said(self, payload: bytes) -> None:
        """Take in the trainer's status; a change of ability is told at once, for it decides whether a round can open."""
        status = self._decoded(TrainerStatus, payload)
        if status is None:
            return
        self._trainer, self._trainer_heard = status, self._clock()
        if self._ability()[0] != self._said_able:
            self.beat()

    def deployer_said(self, payload: bytes) -> None:
        """Take in which version of the model deployer is at work."""
        active = self._decoded(ActiveModel, payload)
        if active is not None:
            self._deployer_version = active.component_version

    def _interval(self) -> float:
        return self._settings.own.interval_seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _ability(self) -> tuple[bool, str]:
        if self._trainer is None:
            return False, "the trainer has not reported yet"
        silent = self._clock() - self._trainer_heard
        if silent > _SILENCE_SECONDS:
            return False, f"the trainer has been silent for {silent:.0f} s"
        return self._trainer.able, "" if self._trainer.able else self._trainer.reason

    def _components(self) -> dict[str, str]:
        versions = {
            RUNTIME: fedgrass.__version__,
            HEARTBEAT: self._version,
            TRAINER: self._trainer.component_version if self._trainer else "",
            MODEL_DEPLOYER: self._deployer_version,
        }
        return {name: version for name, version in versions.items() if version}

    def _decoded(self, kind: type[M], payload: bytes) -> M | None:
        try:
            return kind.decode(payload)
        except MessageError as error:
            self._log.once("local message ignored", reason=str(error))
            return None
