"""The heartbeat: tells the cloud that this device is alive, how it is, and whether it would train now.

accessControl: pubsub SubscribeToTopic ``fedgrass/trainer/status`` and ``fedgrass/model/active``; mqttproxy PublishToIoTCore
``fedgrass/<fleet>/devices/<thing>/heartbeat`` and ``$aws/things/<thing>/defender/metrics/json``.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import fedgrass
from fedgrass.edge import defender, life, systemd
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.settings import HeartbeatSettings
from fedgrass.edge.system import Sensors
from fedgrass.errors import MessageError
from fedgrass.files import write_atomically
from fedgrass.protocol import device_messages
from fedgrass.protocol.device_messages import ActiveModel, TrainerStatus
from fedgrass.protocol.message import Message, as_reason
from fedgrass.protocol.names import (
    HEARTBEAT,
    MODEL_ACTIVE_TOPIC,
    MODEL_DEPLOYER,
    RUNTIME,
    TRAINER,
    TRAINER_STATUS_TOPIC,
    defender_topic,
    device_topic,
)

M = TypeVar("M", bound=Message)

# A tenth of the interval: devices that a deployment started at once must not beat in step.
_JITTER = 0.1
# The trainer repeats its status every 30 s by default: four of them missed.
_SILENCE_SECONDS = 120.0
# Between two looks at the trainer's lock: two system calls.
_LOOK_SECONDS = 2.0
_NAMED_EVERY = 10  # heartbeats
_RELAUNCH_SECONDS = 6.0  # what the nucleus takes to restart a component is no trouble


class Absence:
    """Whether a component of this device does not run, and why, as far as can be seen from beside it.

    Parameters
    ----------
    component
        Its name.
    work
        Its work folder.
    unit
        Asks systemd about it, where the nucleus is nucleus lite.
    """

    def __init__(
        self,
        component: str,
        work: Path,
        *,
        clock: Callable[[], float],
        unit: Callable[[str], systemd.Unit | None],
    ) -> None:
        self._component = component
        self._work = work
        self._clock = clock
        self._ask = unit
        self._since: float | None = None
        self._exit_code: int | None = None
        self._unit: systemd.Unit | None = None

    def look(self) -> bool:
        """Look again; returns whether it is gone, or was until now."""
        seen, gone = life.seen(self._work), self._since is not None
        if seen is None or seen.runs:
            self._since = self._unit = None
            return gone
        if self._since is None:
            self._since, self._exit_code = self._clock(), seen.exit_code
        # Asked until systemd has given it up: nothing changes after that without a new deployment, which restarts the
        # trainer.
        if self._unit is None or not self._unit.given_up:
            self._unit = self._ask(self._component)
        return True

    def reason(self) -> str:
        """Why it does not run; nothing while it does, or may only be restarting."""
        if self._since is None:
            return ""
        gone = self._clock() - self._since
        given_up = self._given_up()
        # A restart must not make a round's opening leave this device out.
        if gone < _RELAUNCH_SECONDS and not given_up:
            return ""
        advice = "; the nucleus has given it up: deploy again" if given_up else ""
        return f"the trainer does not run ({self._ended()} {gone:.0f} s ago{advice})"

    def _ended(self) -> str:
        died_of = self._unit.died_of if self._unit is not None else ""
        if died_of == systemd.OUT_OF_MEMORY:
            return "the device ran out of memory"
        if self._exit_code == 0:
            return "stopped"
        if self._exit_code is not None:
            return f"ended with code {self._exit_code}"
        return f"died by {died_of}" if died_of.startswith("signal") else "died"

    def _given_up(self) -> bool:
        """Whether the nucleus no longer starts it: systemd knows, and the classic nucleus counts three errors in an hour."""
        if self._unit is not None:
            return self._unit.given_up
        # On the classic nucleus nobody can be asked; its own rule is applied to what the process left.
        failed = self._since is not None and self._exit_code != 0 and self._clock() - self._since >= _RELAUNCH_SECONDS
        return failed and life.starts_within_an_hour(self._work) >= life.STARTS_AN_HOUR


class Heartbeat:
    """The component; its methods run on the device's loop.

    Component versions come from what each component says of itself on the device, for a component may not ask the nucleus
    about others: the runtime's is that of the library at hand.
    """

    def __init__(
        self,
        device: Device,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        unit: Callable[[str], systemd.Unit | None] = systemd.unit,
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
        self._deployer: ActiveModel | None = None
        self._deployer_heard = 0.0
        self._began = clock()
        self._sensors = Sensors(device.work)
        self._defender_sensors = Sensors(device.work)  # CPU use is over each one's own interval
        self._network = defender.Network()
        self._said_able: tuple[bool, bool] | None = None
        self._instance = secrets.token_hex(4)
        self._named_at: float | None = None
        self._version = version_of(HEARTBEAT, __file__)
        self._said = device.work / "trainer-said.json"
        # Its work folder is beside the model store, which is ModelDeployer's.
        self._absence = Absence(TRAINER, device.store.parent / TRAINER, clock=clock, unit=unit)

    def start(self) -> None:
        """Listen, and beat: the first time at once, then at the interval less or more a tenth."""
        post = self._device.loop.post
        self._ipc.on_local(TRAINER_STATUS_TOPIC, lambda payload: post(lambda: self.trainer_said(payload)))
        self._ipc.on_local(MODEL_ACTIVE_TOPIC, lambda payload: post(lambda: self.deployer_said(payload)))
        self._settings.follow()
        self._outbox.start()
        # Before the first beat, which would say that the trainer has not reported yet.
        self._recall()
        self.beat()
        self._device.loop.every(self._interval, self.beat)
        self._device.loop.every(lambda: _LOOK_SECONDS, self.look)
        if self._settings.own.defender_seconds:
            self._device.loop.every(lambda: self._settings.own.defender_seconds, self.report)

    def stop(self) -> None:
        """Stop, and keep what the trainer said last: it says it again only after a while."""
        if self._trainer is not None:
            with suppress(OSError, MessageError):
                write_atomically(self._said, self._trainer.encode())
        self._outbox.stop()

    def beat(self) -> None:
        """Send a heartbeat; one that could not be sent yet is replaced by it."""
        able, runs, reason = self._ability()
        self._said_able = (able, runs)
        reading = self._sensors.read()
        active = self._store.active()
        trainer = self._trainer or TrainerStatus()
        heartbeat = device_messages.Heartbeat(
            fleet=self._fleet,
            thing=self._device.thing,
            sent_at=datetime.now(timezone.utc),
            interval_seconds=self._settings.own.interval_seconds,
            able=able,
            reason=as_reason(reason),
            trainer_runs=runs,
            cpu_percent=reading.cpu_percent,
            load=round(reading.load, 3),
            memory_percent=reading.memory_percent,
            disk_free_bytes=reading.disk_free_bytes,
            examples=trainer.examples,
            drift=trainer.drift,
            tags=self._settings.runtime.tags,
            model_version=active.manifest.version if active else None,
            # What is said elsewhere in the message is left out, which keeps it within the bound.
            trainer=trainer.model_copy(
                update={"last_error": "", "drift": None, "reason": as_reason(trainer.reason) if able else ""}
            ),
            components=self._components(),
            silent=self._silent(),
            errors=self._errors(),
            **self._name_of_this_process(),
        )
        topic = device_topic(self._fleet, self._device.thing, "heartbeat")
        self._outbox.put_newest("heartbeat", topic, heartbeat.encode())

    def look(self) -> None:
        """See whether the trainer's process is there; that it is gone is told at once, and that it is back."""
        # Only a change is told at once: a round may be waiting for this device.
        if self._absence.look() and self._ability()[:2] != self._said_able:
            self.beat()

    def report(self) -> None:
        """Send Device Defender its metrics; a report that could not be sent yet is replaced by it."""
        trainer = self._trainer or TrainerStatus()
        network = self._network.since_last()
        payload = defender.report(self._fleet, self._defender_sensors.read(), trainer.tally, network=network)
        self._outbox.put_newest("defender", defender_topic(self._device.thing), payload)

    def trainer_said(self, payload: bytes) -> None:
        """Take in the trainer's status; a change of ability is told at once, for it decides whether a round can open."""
        status = self._decoded(TrainerStatus, payload)
        if status is None:
            return
        self._trainer, self._trainer_heard = status, self._clock()
        self._absence.look()
        if self._ability()[:2] != self._said_able:
            self.beat()

    def deployer_said(self, payload: bytes) -> None:
        """Take in which version of the model deployer is at work."""
        active = self._decoded(ActiveModel, payload)
        if active is not None:
            self._deployer, self._deployer_heard = active, self._clock()

    def _recall(self) -> None:
        """Go by what the trainer said to the former process, if it runs: nucleus lite restarts this one at each release."""
        seen = life.seen(self._device.store.parent / TRAINER)
        if seen is None or not seen.runs:
            return
        with suppress(OSError, MessageError):
            self._trainer, self._trainer_heard = TrainerStatus.decode(self._said.read_bytes()), self._clock()

    def _name_of_this_process(self) -> dict[str, Any]:
        """What tells two devices of one name apart; not in each heartbeat, for each such is one more item to write."""
        now = self._clock()
        due = _NAMED_EVERY * self._settings.own.interval_seconds
        if self._named_at is not None and now - self._named_at < due:
            return {}
        self._named_at = now
        return {"instance": self._instance, "up_seconds": round(now - self._began, 3)}

    def _interval(self) -> float:
        return self._settings.own.interval_seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _ability(self) -> tuple[bool, bool, str]:
        """Whether the trainer would train, whether it runs, and why not."""
        # What can be seen comes before what was said: a process that is gone may have called itself able.
        if absent := self._absence.reason():
            return False, False, absent
        if self._trainer is None:
            return False, True, "the trainer has not reported yet"
        silent = self._clock() - self._trainer_heard
        if silent > _SILENCE_SECONDS:
            return False, False, f"the trainer has been silent for {silent:.0f} s"
        return self._trainer.able, True, "" if self._trainer.able else self._trainer.reason

    def _components(self) -> dict[str, str]:
        versions = {
            RUNTIME: fedgrass.__version__,
            HEARTBEAT: self._version,
            TRAINER: self._trainer.component_version if self._trainer else "",
            MODEL_DEPLOYER: self._deployer.component_version if self._deployer else "",
        }
        return {name: version for name, version in versions.items() if version}

    def _silent(self) -> tuple[str, ...]:
        """Components silent for two minutes. ModelDeployer speaks of the active model only: without one it may be silent."""
        heard = {TRAINER: self._trainer_heard if self._trainer else self._began}
        if self._store.active() is not None:
            heard[MODEL_DEPLOYER] = self._deployer_heard if self._deployer else self._began
        return tuple(name for name, at in heard.items() if self._clock() - at > _SILENCE_SECONDS)

    def _errors(self) -> dict[str, str]:
        errors = {
            TRAINER: self._trainer.last_error if self._trainer else "",
            MODEL_DEPLOYER: self._deployer.last_error if self._deployer else "",
            HEARTBEAT: self._log.last_error,
        }
        return {name: as_reason(error, 200) for name, error in errors.items() if error}

    def _decoded(self, kind: type[M], payload: bytes) -> M | None:
        try:
            return kind.decode(payload)
        except MessageError as error:
            self._log.log_event("local_message_ignored", reason=str(error))
            return None
