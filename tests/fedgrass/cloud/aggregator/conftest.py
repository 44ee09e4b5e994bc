from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws

from fedgrass.bundle import Bundle, Parameters
from fedgrass.cloud.aggregator.instances import Instance
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.release import FleetClients, upload
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.protocol.messages import Base, Cohort, UpdateTask
from fedgrass.protocol.names import evaluation_key, next_version, update_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.update import UpdateHeader, write_update
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fixtures.doubles import double
from tests.fixtures.local_aws import local_aws, unique
from tests.fixtures.tables import create_tables

__all__ = ["local_aws", "unique"]

DIGITS = Path(__file__).parents[4] / "examples" / "digits" / "bundle"
REGION = "us-east-1"
FLEET = "mill"
GROUP_ARN = f"arn:aws:iot:{REGION}:123456789012:thinggroup/{FLEET}"
ROUND = 3
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    copied = tmp_path_factory.mktemp("digits") / "bundle"
    shutil.copytree(DIGITS, copied)
    return Bundle.open(copied)


def header(base: Bundle, thing: str, **changes: Any) -> UpdateHeader:
    fields = {
        "fleet": FLEET,
        "round": ROUND,
        "thing": thing,
        "base_sha256": base.manifest.parameters_sha256,
        "graph_sha256": base.manifest.graph_sha256,
        "num_examples": 100,
        "metrics": {"loss": 0.5},
    }
    return UpdateHeader.model_validate({**fields, **changes})


def trained(base: Parameters, seed: int, scale: float = 1e-3) -> Parameters:
    """Parameters as a device might have them after training: the base and a small difference."""
    generator = np.random.default_rng(seed)
    return {n: v + generator.normal(scale=scale, size=v.shape).astype(np.float32) for n, v in base.items()}


def update_bytes(base: Bundle, thing: str, seed: int, folder: Path, codec: str = "float32", **changes: Any) -> bytes:
    parameters = base.parameters()
    path = folder / f"{thing}.{seed}"
    write_update(path, parameters, trained(parameters, seed), header(base, thing, **changes), UpdateTask(codec=codec))
    return path.read_bytes()


def make_record(fleet: str, base: Base, settings: FleetSettings | None = None) -> RoundRecord:
    return RoundRecord(
        fleet=fleet,
        round=ROUND,
        execution="arn:aws:states:us-east-1:123456789012:execution:x:y",
        phase="aggregating",
        settings=settings or FleetSettings(),
        base=base,
        version=next_version(base.version, ROUND),
        cohort=Cohort(salt="s"),
        alive=3,
        asked=3,
        quorum=3,
        opened_at=NOW,
        deadline=NOW + timedelta(hours=1),
    )


@dataclass
class Fleet:
    """A fleet whose round is collected: bucket with base and updates, tables, Greengrass with one deployment."""

    clients: FleetClients
    s3: Any
    greengrass: FakeGreengrass
    base: Bundle
    current: Base
    folder: Path
    settings: FleetSettings = field(default_factory=FleetSettings)
    phase: str = "aggregating"

    def put_update(self, thing: str, seed: int, **changes: Any) -> bytes:
        content = update_bytes(self.base, thing, seed, self.folder, **changes)
        self.put(thing, content)
        return content

    def know(self, *things: str) -> None:
        """Make things known by a heartbeat, as the topic rule does."""
        for thing in things:
            self.clients.devices.put_item(Item={"fleet": FLEET, "thing": thing, "received_at": 1})  # type: ignore[union-attr]

    def put(self, thing: str, content: bytes) -> None:
        """Upload a known device's update."""
        self.know(thing)
        self.s3.put_object(Bucket=self.clients.bucket.name, Key=update_key(FLEET, ROUND, thing), Body=content)

    def put_evaluation_set(self, x: Any, y: Any) -> None:
        file = io.BytesIO()
        np.savez(file, x=x, y=y)
        self.s3.put_object(Bucket=self.clients.bucket.name, Key=evaluation_key(FLEET), Body=file.getvalue())

    def run(self, *, instances: int = 1, patience: float | None = None, **replaced: Any) -> RoundReport:
        with self._job(replace(self.clients, **replaced), Instance(0, instances, patience)) as job:
            return job.run()

    def contribute(self, instance: int, instances: int, *, patience: float | None = None) -> None:
        with self._job(self.clients, Instance(instance, instances, patience)) as job:
            job.contribute()

    @contextmanager
    def _job(self, clients: FleetClients, instance: Instance) -> Iterator[RoundJob]:
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        record = make_record(FLEET, self.current, self.settings).model_copy(update={"phase": self.phase})
        self.clients.rounds.put_item(Item=record.to_item())
        source = RoundUpdates(self.s3, self.clients.bucket.name, FLEET, ROUND)
        try:
            yield RoundJob(record, clients, source, scratch, clock=lambda: NOW, instance=instance)
        finally:
            shutil.rmtree(scratch)

    def object(self, key: str) -> bytes | None:
        return self.clients.bucket.read(key, max_bytes=1 << 30)

    def keys(self, prefix: str) -> set[str]:
        listed = self.s3.list_objects_v2(Bucket=self.clients.bucket.name, Prefix=prefix)
        return {entry["Key"] for entry in listed.get("Contents", ())}


@pytest.fixture(scope="session")
def session() -> boto3.Session:
    return boto3.Session("test", "test", region_name=REGION)


@pytest.fixture
def fleet(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: boto3.Session) -> Iterator[Fleet]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        s3 = session.client("s3")
        s3.create_bucket(Bucket="fedgrass-test")
        s3.put_bucket_versioning(Bucket="fedgrass-test", VersioningConfiguration={"Status": "Enabled"})
        dynamodb = session.resource("dynamodb")
        create_tables(session.client("dynamodb"), rounds="rounds", devices="devices")
        bucket = Bucket(s3, "fedgrass-test")
        greengrass = FakeGreengrass()
        clients = FleetClients(
            FLEET, bucket, dynamodb.Table("rounds"), double(greengrass), GROUP_ARN, devices=dynamodb.Table("devices")
        )
        current = upload(digits, bucket, FLEET)
        yield Fleet(clients, s3, greengrass, digits, current, tmp_path)


def three_updates(fleet: Fleet) -> None:
    for seed, thing in enumerate(["press-b", "press-a", "press-c"]):
        fleet.put_update(thing, seed, num_examples=100 * (seed + 1))
