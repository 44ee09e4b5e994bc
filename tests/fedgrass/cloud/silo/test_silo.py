"""Two silos and two devices in one round: silos by their training job's code, devices by the trainer's core."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws

from examples.silos.data import PARTICIPANTS, write
from fedgrass import data as loaders
from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.release import upload
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.fleet_access import FleetAccess
from fedgrass.cloud.silo import __main__ as job
from fedgrass.cloud.silo import participant
from fedgrass.cloud.silo.participant import Participant
from fedgrass.data import ArrayDataset, DataSettings
from fedgrass.engines.registry import open_engine
from fedgrass.errors import BundleError, DataError, TransferError
from fedgrass.protocol.cohort import draw
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.messages import (
    Announcement,
    Base,
    ByLoss,
    Cohort,
    FitTask,
    ModelNotice,
    SumTask,
    UpdateNotice,
    UpdateTask,
    Upload,
)
from fedgrass.protocol.names import device_topic, model_prefix, update_prefix
from fedgrass.training import Trained, TrainingFiles, train
from tests.fedgrass.cloud.rounds.harness import client_error
from tests.fixtures.doubles import double
from tests.fixtures.waiting import eventually

FLEET = "clinics"
BUCKET = "fleet-bucket"
BUILDER = "examples.silos.model:logistic"
NAMES = {"clinic-a": "111111111111-a", "clinic-b": "222222222222-b"}


class IotData:
    """A retained announcement, and what was published; ``after`` updates the fleet has its new model."""

    def __init__(self) -> None:
        self.announcement = b""
        self.published: list[tuple[str, bytes]] = []

    def get_retained_message(self, *, topic: str) -> dict[str, Any]:
        if not self.announcement:
            raise client_error("ResourceNotFoundException")
        return {"topic": topic, "payload": self.announcement}

    def publish(self, *, topic: str, qos: int, payload: bytes) -> None:
        self.published.append((topic, payload))

    def said(self, name: str, channel: Any) -> list[bytes]:
        return [payload for topic, payload in self.published if topic == device_topic(FLEET, name, channel)]


class Fleet:
    def __init__(self, folder: Path, s3: Any) -> None:
        write(folder)
        self.folder = folder
        self.s3 = s3
        self.iot = IotData()
        self.now = 0.0
        self.bundle = Bundle.open(folder / "bundle")
        self.base = upload(self.bundle, Bucket(s3, BUCKET), FLEET)

    def access(self) -> FleetAccess:
        return FleetAccess(self.s3, double(self.iot), clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > 20:  # the round's model is out
            self.s3.put_object(Bucket=BUCKET, Key=model_prefix(FLEET, "1.1.0") + "model.json", Body=b"{}")

    def announce(self, **changes: Any) -> Announcement:
        opened = datetime.now(timezone.utc)
        announcement = Announcement(
            fleet=FLEET,
            round=1,
            opened_at=opened,
            deadline=opened + timedelta(hours=1),
            base=Base.model_validate(self.base.model_dump()),
            fit=FitTask(epochs=5, learning_rate=0.05),
            upload=Upload(bucket=BUCKET, prefix=update_prefix(FLEET, 1)),
            **{"cohort": Cohort(salt="s"), **changes},
        )
        self.iot.announcement = announcement.encode()
        return announcement

    def silo(self, clinic: str, **changes: Any) -> Participant:
        fields = {
            "fleet": FLEET,
            "silo": NAMES[clinic],
            "data": DataSettings(loader="csv", path=str(self.folder / f"{clinic}.csv")),
            "engine": "sklearn",
            "builder": BUILDER,
            "work": self.folder / f"work-{clinic}",
        }
        return Participant(self.access(), **{**fields, **changes})


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        s3 = boto3.Session("test", "test", region_name="us-east-1").client("s3")
        s3.create_bucket(Bucket=BUCKET)
        yield Fleet(tmp_path, s3)


def test_two_silos_and_two_devices_make_a_better_model_than_any_of_them_alone(fleet: Fleet) -> None:
    announcement = fleet.announce()
    updates = fleet.folder / "updates"
    alone = {}
    evaluation = np.load(fleet.folder / "data.npz")
    judged = ArrayDataset(evaluation["x"], evaluation["y"])
    for name in PARTICIPANTS:
        if name in NAMES:
            fleet.silo(name).take_part(rounds=1, wait_seconds=60)
            continue
        split = loaders.load(DataSettings(loader="csv", path=str(fleet.folder / f"{name}.csv")), fleet.bundle.manifest)
        engine = open_engine("sklearn", fleet.bundle, builder=BUILDER)
        made = fleet.folder / f"{name}.safetensors"
        train(
            lambda engine=engine: engine,  # type: ignore[misc]
            fleet.bundle,
            split,
            announcement,
            name,
            TrainingFiles(made, fleet.folder / "checkpoint"),
        )
        alone[name] = engine.evaluate(judged)["accuracy"]
        fleet.s3.upload_file(str(made), BUCKET, f"{update_prefix(FLEET, 1)}{name}/update.safetensors")
    for entry in fleet.s3.list_objects_v2(Bucket=BUCKET, Prefix=update_prefix(FLEET, 1))["Contents"]:
        thing = entry["Key"].split("/")[-2]
        (updates / thing).mkdir(parents=True)
        fleet.s3.download_file(BUCKET, entry["Key"], str(updates / thing / "update.safetensors"))
    result = aggregate_folder(fleet.folder / "bundle", updates, fleet.folder / "new")
    assert {update.thing for update in result.updates} == {*NAMES.values(), "device-1", "device-2"}
    assert not result.quarantined
    engine = open_engine("sklearn", Bundle.open(fleet.folder / "new"), builder=BUILDER)
    together = engine.evaluate(judged)["accuracy"]
    assert together > 0.9
    assert together > max(alone.values())


def test_a_silo_is_heard_before_the_round_and_says_what_became_of_it(fleet: Fleet) -> None:
    fleet.announce()
    fleet.silo("clinic-a").take_part(rounds=1, wait_seconds=60)
    name = NAMES["clinic-a"]
    assert Heartbeat.decode(fleet.iot.said(name, "heartbeat")[0]).able
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(name, "update")]
    assert (notice.status, notice.num_examples) == ("uploaded", 160)
    stored = fleet.s3.get_object(Bucket=BUCKET, Key=notice.key)
    assert stored["ContentLength"] == notice.bytes
    [model] = [ModelNotice.decode(payload) for payload in fleet.iot.said(name, "model")]
    assert (model.version, model.outcome) == ("1.1.0", "active")


def test_a_silo_is_heard_while_it_trains_and_a_lost_heartbeat_costs_no_round(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, name = [], NAMES["clinic-a"]
    publish = fleet.iot.publish

    def losing_one(*, topic: str, qos: int, payload: bytes) -> None:
        if topic == device_topic(FLEET, name, "heartbeat"):
            beats.append(payload)
            if len(beats) == 2:
                raise client_error("ThrottlingException")
        publish(topic=topic, qos=qos, payload=payload)

    def slow(*arguments: Any, **named: Any) -> Trained:
        heard = len(beats)
        eventually(lambda: len(beats) >= heard + 3, "heartbeats while a silo trains")
        return train(*arguments, **named)

    monkeypatch.setattr(participant, "_HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(participant, "train", slow)
    monkeypatch.setattr(fleet.iot, "publish", losing_one)
    fleet.announce()
    fleet.silo("clinic-a").take_part(rounds=1, wait_seconds=60)
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(name, "update")]
    assert notice.status == "uploaded"
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_silo_without_a_round_ends_with_what_to_do(fleet: Fleet) -> None:
    with pytest.raises(TransferError, match="start the round within"):
        fleet.silo("clinic-a").take_part(rounds=1, wait_seconds=60)


def test_a_silo_sends_nothing_in_clear_while_helpers_open_a_masked_sum(fleet: Fleet) -> None:
    fleet.announce(task="sum", sums=SumTask(digest="1" * 64, requests={"helper-1": "0" * 64}))
    with pytest.raises(TransferError, match="no round was open"):
        fleet.silo("clinic-a").take_part(rounds=1, wait_seconds=60)
    assert not fleet.iot.said(NAMES["clinic-a"], "update")
    assert "Contents" not in fleet.s3.list_objects_v2(Bucket=BUCKET, Prefix=update_prefix(FLEET, 1))


def test_a_silo_whose_data_do_not_fit_declines_and_fails_its_job(fleet: Fleet) -> None:
    fleet.announce()
    settings = DataSettings(loader="csv", path=str(fleet.folder / "nowhere.csv"))
    with pytest.raises(DataError):
        fleet.silo("clinic-a", data=settings).take_part(rounds=1, wait_seconds=60)
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(NAMES["clinic-a"], "update")]
    assert notice.status == "declined"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "noise_multiplier is 0, minNoiseMultiplier is 1.5"),
        ({"update": UpdateTask(noise_multiplier=1.4, clip_norm=1)}, "noise_multiplier is 1.4"),
        ({"task": "evaluate"}, "exact figures"),
    ],
)
def test_a_silo_with_a_least_noise_declines_what_tells_more_and_sends_nothing(
    fleet: Fleet, asked: dict[str, Any], why: str
) -> None:
    fleet.announce(**asked)
    fleet.silo("clinic-a", min_noise_multiplier=1.5).take_part(rounds=1, wait_seconds=60)
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(NAMES["clinic-a"], "update")]
    assert (notice.status, notice.key, notice.metrics) == ("declined", None, {})
    assert why in notice.reason
    assert "Contents" not in fleet.s3.list_objects_v2(Bucket=BUCKET, Prefix=update_prefix(FLEET, 1))


def test_a_silo_takes_part_where_there_is_noise_enough(fleet: Fleet) -> None:
    fleet.announce(update=UpdateTask(noise_multiplier=1.5, clip_norm=1))
    fleet.silo("clinic-a", min_noise_multiplier=1.5).take_part(rounds=1, wait_seconds=60)
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(NAMES["clinic-a"], "update")]
    assert (notice.status, notice.num_examples) == ("uploaded", 1)


def test_a_silo_that_is_asked_to_evaluate_does_and_sends_no_update(fleet: Fleet) -> None:
    fleet.announce(task="evaluate", compare=Base.model_validate(fleet.base.model_dump()))
    fleet.silo("clinic-a").take_part(rounds=1, wait_seconds=60)
    [notice] = [UpdateNotice.decode(payload) for payload in fleet.iot.said(NAMES["clinic-a"], "update")]
    assert (notice.status, notice.num_examples) == ("evaluated", 40)
    figures = {"loss", "accuracy", "precision", "recall", "f1", "f1_macro", "auc"}
    assert notice.metrics.keys() == figures | {f"base_{name}" for name in figures}
    assert "Contents" not in fleet.s3.list_objects_v2(Bucket=BUCKET, Prefix=update_prefix(FLEET, 1))


def test_a_model_larger_than_the_silo_takes_is_not_downloaded(fleet: Fleet) -> None:
    fleet.announce()
    with pytest.raises(BundleError, match="bytes"):
        fleet.silo("clinic-a", max_bundle_mb=0).take_part(rounds=1, wait_seconds=60)


def test_a_job_with_wrong_hyperparameters_says_which(tmp_path: Path) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({"fleet": "a b", "silo": "1-a"}))
    assert job.main({"FEDGRASS_ML_ROOT": str(tmp_path)}) == 2
    assert "hyperparameter fleet" in (tmp_path / "output" / "failure").read_text()


def test_where_losses_choose_a_silo_is_asked_by_its_lot_alone(fleet: Fleet) -> None:
    # Whatever earlier jobs have reported: the cloud keeps nothing of silos either.
    silo, lot = fleet.silo("clinic-a"), draw("salt", NAMES["clinic-a"])
    for explore, asked in ((lot + 1e-9, True), (lot, False)):
        cohort = Cohort(salt="salt", by_loss=ByLoss(explore=explore, loss=-1e9, since=1))
        announcement = fleet.announce(cohort=cohort)
        assert silo._announcement() == (announcement if asked else None)
