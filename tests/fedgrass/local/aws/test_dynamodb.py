"""DynamoDB as the fleet uses it: values of every type, whole or in part, and several writers at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess


def create_table(dynamodb: Any, name: str) -> None:
    dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )


EVERY_TYPE: dict[str, Any] = {
    "id": {"S": "all"},
    "text": {"S": ""},
    "number": {"N": "-1.5"},
    "bytes": {"B": b"\x00\xff"},
    "flag": {"BOOL": False},
    "nothing": {"NULL": True},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2"]},
    "blobs": {"BS": [b"\x01", b"\x02"]},
    "list": {"L": [{"N": "1"}, {"M": {"deep": {"B": b"\x03"}}}, {"L": []}]},
    "map": {"M": {"S": {"S": "a name that is a type's"}, "left": {"N": "1"}, "right": {"M": {}}}},
}


def test_an_item_comes_back_as_it_was_put_whole_or_in_part(local_aws: LocalAwsProcess, unique: str) -> None:
    dynamodb = local_aws.client("dynamodb")
    create_table(dynamodb, unique)
    dynamodb.put_item(TableName=unique, Item=EVERY_TYPE)
    answer = dynamodb.get_item(TableName=unique, Key={"id": {"S": "all"}})
    assert answer["Item"] == EVERY_TYPE
    some = {"Keys": [{"id": {"S": "all"}}], "ProjectionExpression": "id, #map.#left, bytes, list[1].deep, nowhere"}
    names = {"#map": "map", "#left": "left"}
    answer = dynamodb.batch_get_item(RequestItems={unique: {**some, "ExpressionAttributeNames": names}})
    assert answer["Responses"][unique] == [
        {
            "id": {"S": "all"},
            "bytes": {"B": b"\x00\xff"},
            "list": {"L": [{"M": {"deep": {"B": b"\x03"}}}]},
            "map": {"M": {"left": {"N": "1"}}},
        }
    ]


def test_a_cancelled_transaction_takes_back_no_other_writer_s_change(local_aws: LocalAwsProcess, unique: str) -> None:
    dynamodb = local_aws.client("dynamodb")
    create_table(dynamodb, unique)
    increment: dict[str, Any] = {
        "TableName": unique,
        "Key": {"id": {"S": "counter"}},
        "UpdateExpression": "ADD n :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    dynamodb.update_item(**increment)
    never = {"Update": {**increment, "ConditionExpression": "attribute_not_exists(n)"}}
    counted, cancelled = threading.Event(), 0

    def cancel() -> None:
        nonlocal cancelled
        client = local_aws.client("dynamodb")
        while not counted.is_set():
            with pytest.raises(client.exceptions.TransactionCanceledException):
                client.transact_write_items(TransactItems=[never])
            cancelled += 1

    others = [threading.Thread(target=cancel) for _ in range(3)]
    for other in others:
        other.start()
    try:
        for _ in range(200):
            dynamodb.update_item(**increment)
    finally:
        counted.set()
        for other in others:
            other.join()
    found = dynamodb.get_item(TableName=unique, Key={"id": {"S": "counter"}}, ConsistentRead=True)["Item"]
    assert cancelled > 0
    assert found["n"] == {"N": "201"}


def test_a_cancelled_transaction_leaves_nothing_of_itself(local_aws: LocalAwsProcess, unique: str) -> None:
    dynamodb = local_aws.client("dynamodb")
    names = {"fleet": "HASH", "what": "RANGE"}
    dynamodb.create_table(
        TableName=unique,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in names],
        KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in names.items()],
    )

    def key(what: str) -> dict[str, Any]:
        return {"fleet": {"S": "one"}, "what": {"S": what}}

    for what in ("changed", "deleted", "other"):
        dynamodb.put_item(TableName=unique, Item={**key(what), "n": {"N": "1"}})
    before = dynamodb.scan(TableName=unique)["Items"]
    values = {"ExpressionAttributeValues": {":one": {"N": "1"}}}
    actions: list[dict[str, Any]] = [
        {"Update": {"TableName": unique, "Key": key("changed"), "UpdateExpression": "ADD n :one", **values}},
        {"Delete": {"TableName": unique, "Key": key("deleted")}},
        {"Put": {"TableName": unique, "Item": key("new")}},
    ]
    refused = {"TableName": unique, "Key": key("other"), "ConditionExpression": "attribute_not_exists(n)"}
    with pytest.raises(dynamodb.exceptions.TransactionCanceledException):
        dynamodb.transact_write_items(TransactItems=[*actions, {"ConditionCheck": refused}])

    def by_name(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(items, key=lambda item: str(item["what"]["S"]))

    assert by_name(dynamodb.scan(TableName=unique)["Items"]) == by_name(before)
    dynamodb.transact_write_items(TransactItems=actions)
    after = by_name(dynamodb.scan(TableName=unique)["Items"])
    assert [(item["what"]["S"], item.get("n")) for item in after] == [
        ("changed", {"N": "2"}),
        ("new", None),
        ("other", {"N": "1"}),
    ]
