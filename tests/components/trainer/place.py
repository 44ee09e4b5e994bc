"""A device with a trainer on it, in this process; what is on its disk outlives the trainer."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from components.trainer.trainer import Trainer
from fedgrass.bundle import GRAPH, MANIFEST, PARAMETERS, Bundle
from fedgrass.edge.child import Running
from fedgrass.edge.component import Device
from fedgrass.edge.loop import Loop
from fedgrass.edge.model_store import ModelStore
from fedgrass.logs import Log
from fedgrass.protocol.device_messages import TrainerStatus
from fedgrass.protocol.messages import Announcement, Cohort, FitTask, UpdateNotice, Upload
from fedgrass.protocol.names import (
    MODEL_ACTIVE_TOPIC,
    RUNTIME,
    TRAINER,
    TRAINER_STATUS_TOPIC,
    round_topic,
    update_prefix,
)
from tests.components.trainer.in_process import InProcess
from tests.fedgrass.edge import digits
from tests.fedgrass.edge.fakes import FakeIpc, FakeStreamManager
from tests.fixtures.waiting import run_until

FLEET, THING = "f", "thing-1"
TOPIC = round_topic(FLEET)
QUICK = "tests.components.trainer.engine:QuickEngine"


class FakeS3:
    """Objects by key; ``failures`` of the next reads end early."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures = 0
        self.reads: list[str] = []

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self.reads.append(Key)
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": ""}}, "GetObject")
        if self.failures > 0:
            self.failures -= 1
            raise ClientError({"Error": {"Code": "SlowDown", "Message": ""}}, "GetObject")
        return {"Body": io.BytesIO(self.objects[Key])}

    def hold(self, bundle: Bundle) -> None:
        for name in (GRAPH, PARAMETERS, MANIFEST):
            self.objects[f"models/{FLEET}/{bundle.manifest.version}/{name}"] = bundle.path(name).read_bytes()


class Place:
    """One device."""

    def __init__(self, folder: Path, *, engine: str = QUICK, **trainer: Any) -> None:
        self.folder = folder
        data = digits.write_data(folder / "data.npz", 50)
        self.ipc = FakeIpc(
            {
                RUNTIME: {"fleet": FLEET, "engine": engine, "data": {"path": str(data), "validationFraction": "0.2"}},
                TRAINER: {"minFreeDiskMb": "1", "minFreeMemoryMb": "1", **trainer},
            }
        )
        self.streams = FakeStreamManager()
        self.s3 = FakeS3()
        self.store = ModelStore(folder / "store")
        self.bundle = Bundle.open(digits.BUNDLE)
        self.now = 0.0
        self.trainer: Trainer
        self.loop: Loop

    def have_model(self) -> None:
        """Make the base the active model."""
        with self.store.lock():
            self.store.activate(self.bundle)

    def start(self) -> Trainer:
        """Start the trainer's process."""
        self.loop = Loop()
        # What a former process subscribed to went with it.
        self.ipc = _with_same_cloud(self.ipc)
        device = Device(THING, self.folder / "work", self.folder / "store", self.ipc, self.loop, Log("test"))
        device.work.mkdir(exist_ok=True)
        self.trainer = Trainer(
            device, connect=self.streams.connect, start_child=self.start_child, clock=lambda: self.now
        )
        self.trainer._uploads._wait = 0.02
        self.trainer._outbox._gap = 0.0
        self.trainer.start()
        return self.trainer

    def start_child(self) -> Running:
        """Start what does the trainer's work: on a thread of this process."""
        return InProcess(lambda: self.s3)

    def stop(self) -> None:
        self.trainer.stop()

    def until(self, condition: Any, what: str) -> Any:
        """Run the trainer's loop until a condition holds."""

        return run_until(self.loop, condition, what)

    def settle(self) -> None:
        """Run until the trainer has nothing more to do."""
        self.until(
            lambda: self.trainer._job is None and not len(self.trainer._uploads) and not len(self.trainer._outbox),
            "settled",
        )

    def announcement(self, number: int = 1, *, epochs: int = 3, **changes: Any) -> Announcement:
        opened = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(hours=number)
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "round": number,
            "opened_at": opened,
            "deadline": opened + timedelta(hours=1),
            "base": digits.base_of(self.bundle, FLEET),
            "cohort": Cohort(salt="s"),
            "fit": FitTask(epochs=epochs, learning_rate=0.2),
            "upload": Upload(bucket="bucket", prefix=update_prefix(FLEET, number)),
        }
        return Announcement(**{**fields, **changes})

    def open(self, announcement: Announcement) -> None:
        """Announce a round, retained, as the cloud does."""
        self.ipc.from_cloud(TOPIC, announcement.encode(), retain=True)

    def close(self) -> None:
        """Clear the announcement."""
        self.ipc.from_cloud(TOPIC, b"", retain=True)

    @property
    def notices(self) -> list[UpdateNotice]:
        return [UpdateNotice.decode(payload) for topic, payload in self.ipc.cloud if topic.endswith("/update")]

    @property
    def statuses(self) -> list[TrainerStatus]:
        return [TrainerStatus.decode(payload) for topic, payload in self.ipc.local if topic == TRAINER_STATUS_TOPIC]

    def say_model_is_active(self) -> None:
        self.ipc.publish_local(MODEL_ACTIVE_TOPIC, json.dumps({}).encode())


def _with_same_cloud(former: FakeIpc) -> FakeIpc:
    fresh = FakeIpc(former.configurations)
    fresh.cloud, fresh.local, fresh.deferred = former.cloud, former.local, former.deferred
    fresh.offline, fresh._retained = former.offline, former._retained
    return fresh
