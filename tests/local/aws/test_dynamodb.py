"""DynamoDB with several writers at once, as the fleet's functions are."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from local.aws.client import LocalAwsProcess


def test_a_cancelled_transaction_takes_back_no_other_writer_s_change(local_aws: LocalAwsProcess, unique: str) -> None:
    dynamodb = local_aws.client("dynamodb")
    dynamodb.create_table(
        TableName=unique,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
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
