"""A helper's stack in a local account beside the fleet's: deployed, started, asked, killed, asked again, and undone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedgrass.cli import cli
from fedgrass.cloud.helper.stack import HelperStack
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.aws.client import start as start_aws
from fedgrass.protocol.messages import Announcement, Base, Cohort, SumTask, Upload
from fedgrass.protocol.names import command_key, parameters_key, round_topic, sum_command, sum_request_key
from fedgrass.secure.masks import PIECE
from fedgrass.secure.request import SumRequest
from fedgrass.secure.unmask import unmask
from tests.fedgrass.secure.fleets import BASE, FLEET, asked, devices, helper, masked_sum, plain_sum, task_of
from tests.fixtures.doubles import double
from tests.fixtures.waiting import eventually

ACCOUNT, BUCKET = "111111111111", "the-fleets-bucket"
IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/fedgrass/image@sha256:{'5' * 64}"


class Session:
    def __init__(self, account: LocalAwsProcess) -> None:
        self.client, self.region_name = account.client, account.region


@pytest.fixture
def own(local_aws: LocalAwsProcess, tmp_path: Path) -> Iterator[LocalAwsProcess]:
    local_aws.client("s3").create_bucket(Bucket=BUCKET)
    with start_aws(tmp_path / "account", account=ACCOUNT, accounts=local_aws.state / "accounts") as own:
        yield own
    local_aws.client("iot-data").publish(topic=round_topic(FLEET), qos=1, retain=True, payload=b"")


def ask(fleet: LocalAwsProcess, request: SumRequest, name: str) -> str:
    """What the fleet's aggregator does; returns the answer's key."""
    content, now = request.encode(), datetime.now(timezone.utc)
    fleet.client("s3").put_object(Bucket=BUCKET, Key=sum_request_key(FLEET, 1, name), Body=content)
    announcement = Announcement(
        fleet=FLEET,
        round=1,
        task="sum",
        opened_at=now,
        deadline=now + timedelta(hours=1),
        base=Base(
            version="1.0.0", parameters_key=parameters_key(FLEET, "1.0.0"), parameters_sha256=BASE, graph_sha256=BASE
        ),
        cohort=Cohort(salt="salt"),
        sums=SumTask(digest=request.digest, requests={name: hashlib.sha256(content).hexdigest()}),
        upload=Upload(bucket=BUCKET, prefix="updates/"),
    )
    fleet.client("iot-data").publish(topic=round_topic(FLEET), qos=1, retain=True, payload=announcement.encode())
    return command_key(FLEET, name, sum_command(1, request.digest))


def test_a_helper_in_another_account_opens_a_round_with_a_device_and_once_only(
    local_aws: LocalAwsProcess, own: LocalAwsProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = local_aws
    s3, name = fleet.client("s3"), f"{ACCOUNT}-audit"
    for variable, value in own.environment().items():
        monkeypatch.setenv(variable, value)

    def command(*words: str) -> str:
        done = CliRunner().invoke(cli, ["helper", *words])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    role = f"arn:aws:iam::{fleet.account}:role/fedgrass-mill-helper"
    deployed = command("deploy", "audit", "--fleet", FLEET, "--role", role, "--image", IMAGE)
    assert "its key" in deployed
    assert f"arn:aws:events:us-east-1:{ACCOUNT}:event-bus/fedgrass-helper-audit" in deployed
    told = command("key", "audit", "--wait", "120").strip()
    assert told.startswith(f"{name}=")
    # Deployed again: nothing new, no second key.
    assert "first job" not in command("deploy", "audit", "--fleet", FLEET, "--role", role)
    assert command("key", "audit").strip() == told

    task = task_of()
    pinned = task.helpers[0].model_copy(update={"name": name, "key": told.split("=", 1)[1]})
    task = task.model_copy(update={"helpers": (pinned, *task.helpers[1:])})
    some = devices(4, PIECE + 7, task)
    first, second = asked(some, task), asked(some[1:], task)
    where = ask(fleet, first[0], name)
    answer = eventually(lambda: read(s3, where))
    assert answer is not None
    (tmp_path / "0").write_bytes(answer)
    helper(tmp_path, 2).answer(first[2], tmp_path / "2")
    total = masked_sum(some)
    used = unmask({0: total}, first[0].accepted, {0: tmp_path / "0", 2: tmp_path / "2"})
    assert used.used == (name, "helper-2")
    assert np.array_equal(total, plain_sum(some))

    # Another container, which has nothing but the table: it refuses the second set, and gives the first one's bytes again.
    assert "is being stopped" in command("stop", "audit")
    command("start", "audit")
    other = ask(fleet, second[0], name)
    eventually(lambda: "sum_refused" in logs(own) or None)
    assert read(s3, other) is None
    s3.delete_object(Bucket=BUCKET, Key=where)
    assert ask(fleet, first[0], name) == where
    assert eventually(lambda: read(s3, where)) == answer
    assert "answered for another set" in logs(own)

    # Where two run already no further one is started. One after the other: those woken at once do not see each other.
    stack = HelperStack(double(Session(own)), "audit")
    states, machine = own.client("stepfunctions"), stack.output("MachineArn")

    def running() -> int:
        return sum(job.status == "InProgress" for job in stack.jobs())

    def all_ended() -> bool:
        executions = states.list_executions(stateMachineArn=machine)["executions"]
        return all(one["status"] == "SUCCEEDED" for one in executions)

    for expected in (2, 2):
        stack.start()
        eventually(lambda: all_ended() or None)
        assert running() == expected
    assert '"InProgress"' in command("status", "audit", "--json")

    with pytest.raises(InfrastructureError, match="is of fleet 'mill'"):
        stack.deploy("other", role, {})
    assert "is removed" in command("destroy", "audit", "--yes")
    assert own.client("dynamodb").list_tables()["TableNames"] == []
    assert "there is none" in command("destroy", "audit", "--yes")
    with pytest.raises(InfrastructureError, match="deploy it first"):
        stack.key()


@pytest.mark.parametrize("name", ["", "a_b", "-a", "a--b", "111111111111-audit/", "a" * 31])
def test_a_name_that_is_no_helper_s_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="without the account's number"):
        HelperStack(double(None), name)


def read(s3: Any, key: str) -> bytes | None:
    try:
        found: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return None
    return found


def logs(account: LocalAwsProcess) -> str:
    return "\n".join(path.read_text() for path in sorted((account.state / "logs").glob("processing-*.log")))
