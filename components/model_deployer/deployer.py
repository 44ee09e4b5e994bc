"""The model deployer: says on the device and to the cloud which model is active, and keeps the store small.

accessControl: pubsub PublishToTopic ``fedgrass/model/active``, SubscribeToTopic ``fedgrass/model/admission``; mqttproxy
PublishToIoTCore ``fedgrass/<fleet>/devices/<thing>/model``.
"""

from __future__ import annotations

from pathlib import Path

from fedgrass.edge.component import Device, version_of
from fedgrass.edge.configuration import Configuration
from fedgrass.edge.model_store import Admission, ModelStore
from fedgrass.edge.outbox import Outbox
from fedgrass.edge.settings import ModelDeployerSettings
from fedgrass.errors import AdmissionError, IpcError, TransferError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import ActiveModel, ModelNotice
from fedgrass.protocol.names import (
    MODEL_ACTIVE_TOPIC,
    MODEL_ADMISSION_TOPIC,
    MODEL_DEPLOYER,
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
        self._reported = _Cursor(device.work / "reported")
        self._version = version_of(MODEL_DEPLOYER, __file__)

    def start(self) -> None:
        """Report what happened meanwhile, and listen."""
        self._outbox.start()
        self.scan()
        post = self._device.loop.post
        self._ipc.on_local(MODEL_ADMISSION_TOPIC, lambda _payload: post(self.scan))
        self._settings.follow()
        self._device.loop.every(lambda: self._settings.own.rescan_seconds, self.scan)

    def stop(self) -> None:
        """Stop; what was not sent is on disk."""
        self._outbox.stop()

    def scan(self) -> None:
        """Report every admission that was not reported, say which model is active, and delete old ones."""
        new = [admission for admission in self._store.admissions() if admission.number > self._reported.value]
        for admission in new:
            if not self._report(admission):
                break
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
            reason=admission.reason,
            active_version=admission.active_version,
            metrics=admission.metrics,
        )
        key = f"admission-{admission.number:08d}-{admission.at.timestamp():.6f}"
        try:
            self._outbox.put(key, device_topic(fleet, thing, "model"), notice.encode())
            self._reported.move(admission.number)
        except (TransferError, OSError) as error:
            self._log.once("an outcome cannot be kept now", reason=str(error))
            return False
        self._log.info(
            "model " + admission.outcome, version=admission.version, reason=admission.reason, **admission.metrics
        )
        return True

    def _announce(self) -> None:
        active = self._store.active()
        if active is None:
            return
        message = ActiveModel(
            version=active.manifest.version,
            path=str((self._store.folder / "active" / active.manifest.application_file).absolute()),
            parameters_sha256=active.manifest.parameters_sha256,
            component_version=self._version,
        )
        try:
            self._ipc.publish_local(MODEL_ACTIVE_TOPIC, message.encode())
        except IpcError as error:
            self._log.once("active model not announced", error=str(error))

    def _prune(self) -> None:
        try:
            with self._store.lock():
                gone = self._store.prune(self._settings.own.keep)
        except AdmissionError as error:
            self._log.once("old models stay", reason=str(error))
        else:
            if gone:
                self._log.info("old models deleted", versions=gone)


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
