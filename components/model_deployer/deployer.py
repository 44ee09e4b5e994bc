"""The model deployer: says on the device and to the cloud which model is active, and keeps the store small.

accessControl: pubsub PublishToTopic ``fedgrass/model/active``, SubscribeToTopic ``fedgrass/model/admission`` and
``fedgrass/application/status``; mqttproxy, of this device's topics, PublishToIoTCore ``…/model`` and ``…/reply``,
SubscribeToIoTCore ``…/command``.
"""

from __future__ import annotations

from pathlib import Path

from fedgrass.edge.admissions import Admission
from fedgrass.edge.commands import Commands
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.settings import ModelDeployerSettings
from fedgrass.errors import AdmissionError, FedgrassError, IpcError, MessageError, TransferError
from fedgrass.files import write_atomically
from fedgrass.protocol.device_messages import ActiveModel, ApplicationStatus
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import Command, ModelNotice
from fedgrass.protocol.names import (
    APPLICATION_TOPIC,
    MODEL_ACTIVE_TOPIC,
    MODEL_ADMISSION_TOPIC,
    MODEL_DEPLOYER,
    MODEL_DEPLOYER_COMMANDS,
    device_topic,
)


class ModelDeployer:
    """The component; its methods run on the device's loop.

    What happened to models is read from the store, where admission wrote it: the local notice only says that there is
    something to read, so that a lost one costs time and nothing else.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ipc = device.ipc
        self._settings = Configuration(device, MODEL_DEPLOYER, ModelDeployerSettings)
        self._fleet = self._settings.runtime.fleet
        self._log = device.log.bind(fleet=self._fleet)
        self._store = ModelStore(device.store)
        self._outbox = Outbox(device.work / "outbox", device.ipc.publish_cloud, self._log)
        self._commands = Commands(
            device.work / "commands",
            self._outbox,
            self._log,
            fleet=self._fleet,
            thing=device.thing,
            kinds=MODEL_DEPLOYER_COMMANDS,
        )
        self._reported = _Cursor(device.work / "reported")
        self._version = version_of(MODEL_DEPLOYER, __file__)

    def start(self) -> None:
        """Report what happened meanwhile, and listen."""
        self._outbox.start()
        self.scan()
        post = self._device.loop.post
        self._ipc.on_local(MODEL_ADMISSION_TOPIC, lambda _payload: post(self.scan))
        self._ipc.on_local(APPLICATION_TOPIC, lambda payload: post(lambda: self.application_said(payload)))
        for command in self._commands.waiting():
            self._do(command)
        topic = device_topic(self._fleet, self._device.thing, "command")
        self._ipc.on_cloud(topic, lambda payload: post(lambda: self.commanded(payload)))
        self._settings.follow()
        self._device.loop.every(lambda: self._settings.own.rescan_seconds, self.scan)

    def stop(self) -> None:
        """Stop; what was not sent is on disk."""
        self._outbox.stop()

    def application_said(self, payload: bytes) -> None:
        """Go back to the model before if the application says that the active one does it harm."""
        try:
            status = ApplicationStatus.decode(payload)
        except MessageError as error:
            self._log.log_event("local_message_ignored", reason=str(error))
            return
        active = self._store.active()
        # A word about a model that is no longer active comes too late to act on.
        if status.healthy or active is None or status.model_version != active.manifest.version:
            return
        try:
            self._roll_back(f"the application: {status.reason or 'it gave no reason'}")
        except FedgrassError as error:
            self._log.log_event("application_unhealthy_model_stays", reason=str(error))

    def commanded(self, payload: bytes) -> None:
        """Take in a command from the operator."""
        command = self._commands.received(payload)
        if command is not None:
            self._do(command)

    def _do(self, command: Command) -> None:
        try:
            # A command is repeated after a crash; rolling back twice would lead to the model before the one before.
            if self._store.active() is None or self._rolled_back_by(command) is None:
                self._roll_back(f"command {command.id}: {command.reason}", to=command.version)
            active = self._store.active()
            reply = self._commands.reply(command, "done", version=active.manifest.version if active else None)
        except FedgrassError as error:
            reply = self._commands.reply(command, "refused", str(error))
        self._commands.answer(reply)

    def _rolled_back_by(self, command: Command) -> Admission | None:
        """What this very command did before a crash."""
        mark = f"command {command.id}:"
        return next((a for a in self._store.admissions() if a.reason.startswith(mark)), None)

    def _roll_back(self, reason: str, *, to: str | None = None) -> None:
        with self._store.lock():
            self._store.roll_back(as_reason(reason), to=to)
        self.scan()

    def scan(self) -> None:
        """Report every admission that was not reported, say which model is active, and delete old ones."""
        new = [admission for admission in self._store.admissions() if admission.number > self._reported.value]
        for admission in new:
            # In order: a later outcome must not reach the cloud before an earlier one that is still to be kept.
            if not self._report(admission):
                break
        # At each scan, since local messages are not retained: an application that starts later hears it within half a
        # minute.
        self._announce()
        if new:
            self._prune()

    def _report(self, admission: Admission) -> bool:
        """Hand one outcome on, then note that; in this order, so that a crash between repeats it by its key."""
        fleet, thing = self._fleet, self._device.thing
        notice = ModelNotice(
            fleet=fleet,
            thing=thing,
            version=admission.version,
            outcome=admission.outcome,
            reason=as_reason(admission.reason),
            active_version=admission.active_version,
            metrics=admission.metrics,
        )
        # With the time: after a store was lost, numbers start over, and must not meet keys that were sent.
        key = f"admission-{admission.number:08d}-{admission.at.timestamp():.6f}"
        try:
            self._outbox.put(key, device_topic(fleet, thing, "model"), notice.encode())
            self._reported.move(admission.number)
        except (TransferError, OSError) as error:
            self._log.log_event("model_outcome_not_kept", reason=str(error))
            return False
        self._log.log_event(
            "model_outcome",
            version=admission.version,
            outcome=admission.outcome,
            reason=admission.reason,
            metrics=admission.metrics,
        )
        return True

    def _announce(self) -> None:
        active = self._store.active()
        if active is None:
            return
        # What lies behind the path: a device's own model may take the fleet's place within a version.
        applied = self._store.applied() or active
        message = ActiveModel(
            version=active.manifest.version,
            path=str((self._store.folder / "active" / active.manifest.application_file).absolute()),
            parameters_sha256=applied.manifest.parameters_sha256,
            component_version=self._version,
            last_error=as_reason(self._log.last_error, 200),
        )
        try:
            self._ipc.publish_local(MODEL_ACTIVE_TOPIC, message.encode())
        except IpcError as error:
            self._log.log_event("model_not_announced", error=str(error))

    def _prune(self) -> None:
        try:
            with self._store.lock():
                gone = self._store.prune(self._settings.own.keep)
        except AdmissionError as error:
            self._log.log_event("old_models_not_deleted", reason=str(error))
        else:
            if gone:
                self._log.log_event("old_models_deleted", versions=gone)


class _Cursor:
    """A number that survives restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.value = int(path.read_text())
        except (FileNotFoundError, ValueError):
            self.value = 0

    def move(self, value: int) -> None:
        write_atomically(self._path, str(value).encode())
        self.value = value
