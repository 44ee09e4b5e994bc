"""The tables in memory judge and write as moto's do, whose rules are DynamoDB's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from fedgrass.protocol.writes import change
from tests.explorer.dynamo import Store
from tests.fixtures.tables import create_tables

_NAMES = ("phase", "outcome", "count", "open")
_CONDITIONS = (
    "",
    "attribute_not_exists(#outcome)",
    "attribute_exists(#count)",
    "#phase <> :text",
    "#phase = :text AND attribute_not_exists(#outcome)",
    "#phase IN (:text, :other)",
    "#count < :number OR #open.#round = :number",
    "(#open.#round = :number AND #phase = :text) OR (attribute_not_exists(#count) AND NOT #outcome = :text)",
    "begins_with(#phase, :text)",
)
_VALUES = {":text": "collecting", ":other": "closed", ":number": 2}

items = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["collecting", "closed"]),
        "outcome": st.sampled_from(["held", "collecting"]),
        "count": st.integers(0, 3),
        "open": st.fixed_dictionaries({"round": st.integers(1, 3)}),
    },
)
puts = st.fixed_dictionaries(
    {}, optional={"phase": st.sampled_from(["closed"]), "open": st.just({"round": 2}), "note": st.just([1, True, "x"])}
)
changes = st.tuples(puts, st.booleans(), st.lists(st.sampled_from(("outcome", "open")), unique=True)).filter(any)


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    with mock_aws():
        session = boto3.Session("test", "test", region_name="us-east-1")
        create_tables(session.client("dynamodb"), rounds="rounds", devices="devices")
        yield session.resource("dynamodb").Table("rounds")


def outcome(table: Any, act: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    """What a call comes to: its answer or its error, and the item after it."""
    errors = table.meta.client.exceptions
    try:
        said = getattr(table.meta.client if act.startswith("transact") else table, act)(**arguments)
        answer = said.get("Attributes", "written")
    except errors.ConditionalCheckFailedException:
        answer = "refused"
    except errors.TransactionCanceledException as error:
        answer = [reason["Code"] for reason in error.response["CancellationReasons"]]
    found = [table.get_item(Key={"fleet": "f", "key": key}).get("Item") for key in ("a", "b")]
    return answer, found


def arguments_of(drawn: tuple[dict[str, Any], bool, list[str]], condition: str) -> dict[str, Any]:
    put, add, remove = drawn
    removed = [name for name in remove if name not in put]
    used = {name: value for name, value in _VALUES.items() if name in condition}
    return change(put=put or None, add={"count": 1} if add else None, remove=removed, condition=condition, values=used)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(items, min_size=2, max_size=2),
    st.lists(changes, min_size=2, max_size=2),
    st.lists(st.sampled_from(_CONDITIONS), min_size=2, max_size=2),
    st.booleans(),
)
def test_tables_in_memory_do_what_moto_s_do(
    real: Any, before: list[dict[str, Any]], drawn: list[Any], conditions: list[str], transaction: bool
) -> None:
    fake = Store().table("rounds", "key")
    writes = [arguments_of(one, condition) for one, condition in zip(drawn, conditions, strict=True)]
    writes = [one if one["UpdateExpression"] else change(put={"phase": "closed"}) for one in writes]
    found = []
    for table in (fake, real):
        for key, item in zip(("a", "b"), before, strict=True):
            table.put_item(Item={"fleet": "f", "key": key, **item})
        if transaction:
            actions = [
                {"Update": {"TableName": "rounds", "Key": {"fleet": "f", "key": key}, **write}}
                for key, write in zip(("a", "b"), writes, strict=True)
            ]
            found.append(outcome(table, "transact_write_items", {"TransactItems": actions}))
        else:
            arguments = {"Key": {"fleet": "f", "key": "a"}, "ReturnValues": "ALL_NEW", **writes[0]}
            found.append(outcome(table, "update_item", arguments))
    assert found[0] == found[1]


def test_tables_in_memory_take_no_floats() -> None:
    with pytest.raises(TypeError):
        Store().table("rounds", "key").put_item(Item={"fleet": "f", "key": "a", "loss": 0.5})
