"""A helper as a job in an account of its own: whole rounds with it, and a cloud that kills it, replays and asks it twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from fedgrass.cloud.aggregator import helpers as asking
from fedgrass.cloud.ending.announcement import sums_of
from fedgrass.cloud.fleet_access import FleetAccess
from fedgrass.cloud.helper import host as host_module
from fedgrass.cloud.helper.host import HelperHost
from fedgrass.cloud.helper.table import KEY, TableState
from fedgrass.errors import DataError, MessageError
from fedgrass.protocol.messages import Announcement, SumTask
from fedgrass.protocol.names import command_key, sum_command, sum_request_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.secure.helper import Helper, HelperLimits
from fedgrass.secure.keys import public_text
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, make_record
from tests.fedgrass.cloud.aggregator.test_secure_job import HelperDevices, assert_is_the_mean, put_masked
from tests.fedgrass.cloud.rounds.harness import client_error
from tests.fedgrass.secure.fleets import asked, device, task_of
from tests.fedgrass.secure.fleets import devices as made
from tests.fixtures.doubles import double

ACCOUNT, NAME = "111111111111", "111111111111-audit"


class Owner:
    """The helper's account: its table and its KMS key, and as many jobs as anybody starts, each with an empty disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._jobs = folder, 0
        role = f"arn:aws:iam::{ACCOUNT}:role/helper"
        given = boto3.client("sts", region_name="us-east-1").assume_role(RoleArn=role, RoleSessionName="owner")
        keys = {
            "aws_access_key_id": given["Credentials"]["AccessKeyId"],
            "aws_secret_access_key": given["Credentials"]["SecretAccessKey"],
            "aws_session_token": given["Credentials"]["SessionToken"],
        }
        connect: Callable[..., Any] = boto3.Session  # typed for arguments that are written out
        self.session = connect(**keys, region_name="us-east-1")
        self.dynamodb: Any = self.session.client("dynamodb")
        self.dynamodb.create_table(
            TableName="kept",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "kind", "KeyType": "HASH"}, {"AttributeName": "id", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("kind", "id")],
        )
        self.kms: Any = self.session.client("kms")
        self.kms_key = self.kms.create_key()["KeyMetadata"]["Arn"]

    def state(self, *, name: str = NAME, dynamodb: Any = None) -> TableState:
        return TableState(dynamodb or self.dynamodb, self.kms, "kept", self.kms_key, FLEET, name)

    def job(self, limits: HelperLimits | None = None, *, dynamodb: Any = None) -> Helper:
        """What a new container has: the table, and nothing else."""
        return Helper(self.state(dynamodb=dynamodb), FLEET, limits)

    def disk(self) -> Path:
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        folder.mkdir()
        return folder

    def items(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.dynamodb.scan(TableName="kept")["Items"]
        return found


class Between:
    """A DynamoDB client before whose first write something else happens."""

    def __init__(self, client: Any, first: Callable[[], object]) -> None:
        self._client, self._first = client, [first]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_item(self, **arguments: Any) -> Any:
        while self._first:
            self._first.pop()()
        return self._client.put_item(**arguments)


@pytest.fixture
def owner(tmp_path: Path) -> Any:
    with mock_aws():
        yield Owner(tmp_path)


class WithAnAccount(HelperDevices):
    """Two core devices as helpers, and the job, which hears the retained announcement."""

    def __init__(self, fleet: Fleet, folder: Path, owner: Owner) -> None:
        super().__init__(fleet, folder)
        self.owner, self.retained = owner, b""
        self.helpers = {name: self.helpers[name] for name in ("helper-a", "helper-b")}
        self.host = self.started()
        self.before: Callable[[], None] = lambda: None
        self.answers = 0

    def started(self) -> HelperHost:
        access = FleetAccess(self._fleet.s3, double(self), clock=lambda: 0.0, sleep=lambda _: None)
        return HelperHost(access, self.owner.job(), FLEET, NAME, self.owner.disk())

    def get_retained_message(self, *, topic: str) -> dict[str, Any]:
        assert topic == f"fedgrass/{FLEET}/round"
        if not self.retained:
            raise client_error("ResourceNotFoundException")
        return {"payload": self.retained}

    def publish(self, *, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        self.retained = payload
        if payload:
            told = Announcement.decode(payload)
            assert told.sums is not None
            others = {name: digest for name, digest in told.sums.requests.items() if name != NAME}
            rest = told.model_copy(update={"sums": told.sums.model_copy(update={"requests": others})})
            super().publish(topic=topic, payload=rest.encode(), qos=qos, retain=retain)
        self.before()
        self.answers += self.host.look()


@pytest.fixture
def together(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WithAnAccount:
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.05)
    found = WithAnAccount(fleet, tmp_path, Owner(tmp_path))
    keys = {name: one.public_key for name, one in found.helpers.items()} | {NAME: found.host.helper.public_key}
    pinned = [{"name": name, "key": key} for name, key in keys.items()]
    fleet.settings = FleetSettings().overridden({"secure": {"helpers": pinned, "helper_seconds": 1}})
    publisher: Any = found
    fleet.clients = replace(fleet.clients, iot_data=publisher)
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=100 * (number + 1))
    return found


def test_a_round_opens_by_a_core_device_and_another_account_s_job(
    fleet: Fleet, together: WithAnAccount, tmp_path: Path
) -> None:
    together.off = ("helper-b",)
    assert_is_the_mean(fleet, fleet.run(), tmp_path / "model")
    assert together.answers == 2  # the check, and the sums; the announcement that closes it is no third
    assert not list(together.host.work.iterdir())


def test_helpers_noise_comes_from_an_account_s_job_too(fleet: Fleet, together: WithAnAccount) -> None:
    fleet.settings = fleet.settings.overridden({"privacy": {"mode": "distributed"}})
    for number, thing in enumerate(("press-a", "press-b", "press-c")):
        put_masked(fleet, thing, seed=number, examples=1, clip_norm=1.0)
    assert fleet.run().outcome == "released"
    assert together.answers == 2


def test_a_job_that_is_killed_after_the_check_is_replaced_by_one_with_an_empty_disk(
    fleet: Fleet, together: WithAnAccount, tmp_path: Path
) -> None:
    together.off = ("helper-a",)

    def another() -> None:
        together.host = together.started()

    together.before = another
    assert_is_the_mean(fleet, fleet.run(), tmp_path / "model")


def test_a_network_that_is_away_for_a_while_costs_no_answer(
    fleet: Fleet, together: WithAnAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    heard, failures = together.get_retained_message, iter([True, True])

    def unsteady(*, topic: str) -> dict[str, Any]:
        if next(failures, False):
            raise client_error("InternalFailureException")
        return heard(topic=topic)

    monkeypatch.setattr(together, "get_retained_message", unsteady)
    together.host.access = replace(together.host.access, clock=lambda: now[0], sleep=sleep)
    assert together.host.serve(10) == 0
    assert 10 <= now[0] < 20

    def gone(*, topic: str) -> dict[str, Any]:
        raise client_error("AccessDeniedException" if now[0] < 25 else "InternalFailureException")

    monkeypatch.setattr(together, "get_retained_message", gone)
    with pytest.raises(Exception, match="InternalFailure"):
        together.host.serve(20)


def test_what_is_announced_and_is_not_there_as_announced_is_refused_and_the_job_goes_on(
    fleet: Fleet, together: WithAnAccount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.run()
    bucket, key = fleet.clients.bucket.name, sum_request_key(FLEET, ROUND, NAME)
    content = fleet.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    monkeypatch.setattr(host_module, "MAX_REQUEST_BYTES", len(content) + 10)
    before, own = set(fleet.keys("updates/")), together.host.helper.public_key.encode()
    wrong = {
        "is not what was announced": (content + b" ", content),
        "at most": (content + b" " * 11, content + b" " * 11),
        "request:": (b"{}", b"{}"),
        "this helper is of 'mill'": (content.replace(b'"fleet":"mill"', b'"fleet":"mull"'),) * 2,
        "another helper's key": (content.replace(own, b"A" * 43 + b"="),) * 2,
    }
    for number, (said, (there, told)) in enumerate(wrong.items()):
        fleet.s3.put_object(Bucket=bucket, Key=key, Body=there)
        together.retained = announced(fleet, digest=f"{number:064x}"[::-1], sha256=hashlib.sha256(told).hexdigest())
        caplog.clear()
        with caplog.at_level("INFO"):
            assert together.host.look()
        assert said in str([vars(record) for record in caplog.records])
        assert not together.host.look()  # once: it stays what it is
    assert set(fleet.keys("updates/")) == before
    # What cannot be read is asked for again, and answered when it can be.
    together.retained = announced(fleet, digest="ab" * 32, sha256=hashlib.sha256(content).hexdigest())
    fleet.s3.delete_object(Bucket=bucket, Key=key)
    for _ in range(2):
        with pytest.raises(ClientError, match="NoSuchKey"):
            together.host.look()
    fleet.s3.put_object(Bucket=bucket, Key=key, Body=content)
    assert together.host.look()
    assert len(set(fleet.keys("updates/")) - before) == 1


def announced(fleet: Fleet, *, digest: str, sha256: str) -> bytes:
    record = make_record(FLEET, fleet.current, fleet.settings)
    record = record.model_copy(update={"sums": SumTask(digest=digest, requests={NAME: sha256})})
    return sums_of(record, fleet.clients.bucket.name).encode()


# ---- A cloud that does not keep to it


def of_two(owner: Owner, number: int = 1) -> tuple[Any, Any]:
    """The requests to this helper for two sets of one round that differ by a device."""
    task = task_of()
    own = task.helpers[0].model_copy(update={"name": NAME, "key": owner.job().public_key})
    task = task.model_copy(update={"helpers": (own, *task.helpers[1:])})
    some = [sends(f"thing-{i}", task, number) for i in range(4)]
    return asked_first(some, task, number), asked_first(some[1:], task, number)


def sends(thing: str, task: Any, number: int) -> Any:
    return device(thing, made(1, 9, task)[0].plain, task, number)


def asked_first(some: Any, task: Any, number: int) -> Any:
    return asked(some, task, number)[0]


def test_a_second_set_is_refused_by_every_later_job_whatever_became_of_the_first(owner: Owner) -> None:
    first, second = of_two(owner)
    whole = owner.job().answer(first, owner.disk() / "a")

    class KilledError(Exception):
        pass

    def dies() -> None:
        raise KilledError

    third, fourth = of_two(owner, number=2)
    with pytest.raises(KilledError):
        owner.job().answer(third, owner.disk() / "a", after_piece=dies)
    for request in (second, fourth):
        disk = owner.disk()
        with pytest.raises(MessageError, match="answered for another set"):
            owner.job().answer(request, disk / "a")
        assert not list(disk.iterdir())
    # The same set again, from nothing: the very same bytes, so that it tells nothing new.
    assert owner.job().answer(first, owner.disk() / "a") == whole
    assert owner.job().answer(third, owner.disk() / "a") == owner.job().answer(third, owner.disk() / "a")


def test_of_two_jobs_that_are_shown_two_sets_at_once_one_answers(owner: Owner) -> None:
    first, second = of_two(owner)
    disk, twin = owner.disk(), owner.disk()
    # The other job does all of its work between this one's looks and its first write.
    late = owner.job(dynamodb=Between(owner.dynamodb, lambda: owner.job().answer(second, twin / "a")))
    with pytest.raises(MessageError, match="answered for another set"):
        late.answer(first, disk / "a")
    assert (twin / "a").exists()
    assert not list(disk.iterdir())


def test_of_two_jobs_that_make_the_key_at_once_both_have_the_first(owner: Owner) -> None:
    found: list[str] = []
    late = owner.job(dynamodb=Between(owner.dynamodb, lambda: found.append(owner.job().public_key)))
    assert [late.public_key] == found
    assert owner.job().public_key == found[0]


def test_the_private_key_lies_nowhere_in_clear_and_opens_for_this_helper_alone(owner: Owner) -> None:
    private = owner.state().key()
    assert private.private_bytes_raw() not in repr(owner.items()).encode("latin-1", "replace")
    assert all(private.private_bytes_raw() not in item.get("secret", {}).get("B", b"") for item in owner.items())
    assert owner.items()[0]["public"]["S"] == public_text(private)
    with pytest.raises(Exception, match="InvalidCiphertext"):
        owner.state(name="111111111111-other").key()
    owner.dynamodb.update_item(
        TableName="kept",
        Key={"kind": {"S": KEY}, "id": {"S": KEY}},
        UpdateExpression="SET #p = :p",
        ExpressionAttributeNames={"#p": "public"},
        ExpressionAttributeValues={":p": {"S": "A" * 43 + "="}},
    )
    with pytest.raises(DataError, match="somebody changed the item"):
        owner.job()


def test_devices_keys_are_kept_for_all_jobs_and_the_first_one_counts(owner: Owner) -> None:
    first, _ = of_two(owner)
    careful = HelperLimits(min_devices=3, known_seconds=3600)
    assert "has known 0 for 3600 s" in owner.job(careful).check(as_a_check(first)).refused
    assert set(owner.state().known()) == {f"thing-{i}" for i in range(4)}
    before = owner.state().known()
    assert owner.state().keep({"thing-0": ("another", 0.0)}) == {"thing-0": before["thing-0"]}
    # A job whose look was before: another one keeps a stranger's key for the name meanwhile.
    owner.dynamodb.delete_item(TableName="kept", Key={"kind": {"S": "device"}, "id": {"S": "thing-0"}})
    stranger = Between(owner.dynamodb, lambda: owner.state().keep({"thing-0": ("stranger", 0.0)}))
    with pytest.raises(MessageError, match="'thing-0' signs with another key"):
        owner.job(dynamodb=stranger).answer(first, owner.disk() / "a")


def as_a_check(request: Any) -> Any:
    return request.model_copy(update={"check": True})


def test_a_helper_whose_table_is_gone_has_no_key_for_what_was_sealed(owner: Owner) -> None:
    first, second = of_two(owner)
    owner.job().answer(first, owner.disk() / "a")
    for item in owner.items():
        owner.dynamodb.delete_item(TableName="kept", Key={name: item[name] for name in ("kind", "id")})
    with pytest.raises(MessageError, match="another helper's key"):
        owner.job().answer(second, owner.disk() / "a")


def test_the_key_of_an_answer_is_where_the_role_may_write() -> None:
    key = command_key(FLEET, NAME, sum_command(7, "ab" * 32))
    assert key == f"updates/{FLEET}/commands/{NAME}/sum-000007-abababababababab/parameters.safetensors"
