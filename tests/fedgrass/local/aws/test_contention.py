"""The stand-in refuses what a busy account refuses, and deletes no sooner than IoT does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from werkzeug import Request
from werkzeug.test import EnvironBuilder

from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.local.aws.contention import Contention
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.xdist_group("contention")  # which one account serves

ONCE = Config(retries={"total_max_attempts": 1})


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAwsProcess]:
    with start(tmp_path_factory.mktemp("busy"), busy=0.3, lag=1.0) as account:
        yield account


def client(account: LocalAwsProcess, service: str) -> Any:
    """One that tries once."""
    given = account.environment()
    connect: Callable[..., Any] = boto3.client
    return connect(
        service,
        endpoint_url=account.endpoint_url,
        region_name=account.region,
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        config=ONCE,
    )


def refusal(call: Any, **arguments: Any) -> dict[str, Any]:
    """What a call is refused with; empty if it gets through."""
    try:
        call(**arguments)
    except ClientError as error:
        return dict(error.response)
    return {}


def code(call: Any, **arguments: Any) -> str:
    return str(refusal(call, **arguments).get("Error", {}).get("Code", ""))


def codes(call: Any, **arguments: Any) -> set[str]:
    """Codes of the errors in forty calls."""
    return {code(call, **arguments) for _ in range(40)} - {""}


def test_writes_meet_transactions_and_transactions_each_other(busy: LocalAwsProcess, unique: str) -> None:
    dynamodb = client(busy, "dynamodb")
    key = {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}]}
    eventually(
        lambda: (
            not code(
                dynamodb.create_table,
                TableName=unique,
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
                **key,
            )
        )
    )
    item = {"id": {"S": "a"}}
    assert codes(dynamodb.put_item, TableName=unique, Item=item) == {"TransactionConflictException"}
    put = [{"Put": {"TableName": unique, "Item": {"id": {"S": name}}}} for name in "ab"]
    assert codes(dynamodb.transact_write_items, TransactItems=put) == {"TransactionCanceledException"}
    canceled = eventually(lambda: refusal(dynamodb.transact_write_items, TransactItems=put))
    assert [reason["Code"] for reason in canceled["CancellationReasons"]] == ["TransactionConflict", "None"]
    assert codes(dynamodb.get_item, TableName=unique, Key=item) == {"ThrottlingException"}


def test_services_throttle_and_the_sdk_gets_through(busy: LocalAwsProcess) -> None:
    assert codes(client(busy, "iot").list_things) == {"ThrottlingException"}
    assert codes(client(busy, "s3").list_buckets) == {"SlowDown"}
    assert codes(busy.client("iot").list_things) == set()
    assert codes(busy.client("s3").list_buckets) == set()


def test_what_was_detached_is_held_for_a_while(busy: LocalAwsProcess, unique: str) -> None:
    iot = busy.client("iot")
    certificate = iot.create_keys_and_certificate(setAsActive=True)
    iot.create_thing(thingName=f"{unique}:a")
    iot.create_policy(policyName=unique, policyDocument="{}")
    iot.attach_policy(policyName=unique, target=certificate["certificateArn"])
    iot.attach_thing_principal(thingName=f"{unique}:a", principal=certificate["certificateArn"])
    iot.detach_thing_principal(thingName=f"{unique}:a", principal=certificate["certificateArn"])
    iot.detach_policy(policyName=unique, target=certificate["certificateArn"])
    iot.update_certificate(certificateId=certificate["certificateId"], newStatus="INACTIVE")
    for call, arguments in [
        (iot.delete_policy, {"policyName": unique}),
        (iot.delete_certificate, {"certificateId": certificate["certificateId"]}),
        (iot.delete_thing, {"thingName": f"{unique}:a"}),
    ]:
        said: set[str] = set()

        def deleted(call: Any = call, arguments: Any = arguments, said: set[str] = said) -> bool:
            said.add(code(call, **arguments))
            return "" in said

        eventually(deleted)
        assert said <= {"", "DeleteConflictException", "InvalidRequestException"}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_alone_decides_and_no_operation_is_refused_for_ever(seed: int) -> None:
    request = Request(EnvironBuilder(path="/things", method="GET").get_environ())
    runs = []
    for _ in range(2):
        contention = Contention(0.5, seed=seed)
        runs.append([contention.refusal("iot", request) is None for _ in range(200)])
    assert runs[0] == runs[1]
    assert not any(not any(runs[0][at : at + 3]) for at in range(198)), "at most two in a row"
    assert 0 < runs[0].count(False) < 134
    assert all(Contention(0.0).refusal("iot", request) is None for _ in range(100))
