"""What AWS says when it cannot just now: writes to the tables are repeated, and the state machine repeats what it hears of."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.loaders import Loader

from fedgrass.protocol.writes import BUSY, BusyError, put_item, transact, update_item
from tests.fixtures.doubles import double
from tests.fixtures.places import DEFINITION, ROOT

_USED = {
    "dynamodb": ("BatchGetItem", "GetItem", "PutItem", "Query", "TransactWriteItems", "UpdateItem"),
    "greengrassv2": ("CreateDeployment", "GetDeployment", "ListDeployments"),
    "iot-data": ("Publish",),
    "sagemaker": ("CreateModelPackage", "CreateProcessingJob", "DescribeProcessingJob", "ListModelPackages"),
    "stepfunctions": ("DescribeExecution",),
}
_FINAL = {
    "AccessDeniedException",
    "ConditionalCheckFailedException",
    "IdempotentParameterMismatchException",
    "InvalidArn",
    "InvalidRequestException",
    "ItemCollectionSizeLimitExceededException",
    "KmsAccessDeniedException",
    "KmsInvalidStateException",
    "MethodNotAllowedException",
    "ResourceInUse",  # told apart where it arrives
    "ResourceNotFound",
    "ResourceNotFoundException",
    "UnauthorizedException",
    "ValidationException",
    "ExecutionDoesNotExist",
}
"""What trying again does not mend."""


def passing() -> set[str]:
    """Names of what the calls of our functions can raise and may pass: Lambda reports an error by its class's name."""
    found = set()
    for service, calls in _USED.items():
        operations = Loader().load_service_model(service, "service-2")["operations"]
        found |= {error["shape"] for call in calls for error in operations[call].get("errors", ())}
    return found - _FINAL


def retried() -> list[set[str]]:
    states = json.loads(DEFINITION.read_text())["States"].values()
    return [
        {name for rule in state["Retry"] for name in rule["ErrorEquals"]} for state in states if state["Type"] == "Task"
    ]


def test_every_task_repeats_the_errors_that_say_try_again() -> None:
    expected = passing()
    assert {"TransactionCanceledException", "ProvisionedThroughputExceededException"} <= expected
    # Not in the model of every call that can raise it.
    expected |= {"TransactionConflictException", "ThrottlingException", "ClientError", BusyError.__name__}
    expected |= {"Lambda.TooManyRequestsException", "Runtime.ExitError", "Sandbox.Timedout"}
    for names in retried():
        assert expected <= names, expected - names


class Table:
    """Refuses writes with an error for some times."""

    name = "rounds"

    def __init__(self, code: str, times: int, **more: Any) -> None:
        self.calls = 0
        self._times = times
        response: Any = {"Error": {"Code": code, "Message": code}, **more}
        self._error = ClientError(response, "Write")
        self.meta = self.client = self
        self.exceptions = type("Exceptions", (), {"TransactionCanceledException": CancelledError})
        if code == "TransactionCanceledException":
            self._error = CancelledError(response, "Write")
        self.tokens: set[str] = set()

    def _write(self, **arguments: Any) -> dict[str, Any]:
        self.calls += 1
        self.tokens.add(arguments.get("ClientRequestToken", ""))
        if self.calls <= self._times:
            raise self._error
        return {"Attributes": {}}

    put_item = update_item = transact_write_items = _write


class CancelledError(ClientError):
    pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    paused: list[float] = []
    monkeypatch.setattr("fedgrass.protocol.writes.time.sleep", paused.append)
    return paused


@pytest.mark.parametrize("code", sorted(BUSY))
@pytest.mark.parametrize("write", [put_item, update_item])
def test_a_write_that_meets_others_is_repeated_with_growing_pauses(
    code: str, write: Any, no_pauses: list[float]
) -> None:
    table = Table(code, 4)
    write(table, Key={})
    assert table.calls == 5
    assert len(no_pauses) == 4


def test_a_write_that_is_refused_for_good_is_not_repeated() -> None:
    for code in ("ConditionalCheckFailedException", "ValidationException", "AccessDeniedException"):
        table = Table(code, 1)
        with pytest.raises(ClientError, match=code):
            update_item(double(table), Key={})
        assert table.calls == 1


def test_a_transaction_is_one_however_often_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [{"Code": "TransactionConflict"}, {"Code": "ConditionalCheckFailed"}]
    table = Table("TransactionCanceledException", 3, CancellationReasons=reasons)
    assert transact(double(table), [], pause=lambda _: None) is None
    assert (table.calls, len(table.tokens)) == (4, 1)
    final = Table("TransactionCanceledException", 3, CancellationReasons=[{"Code": "None"}, reasons[1]])
    assert transact(double(final), [], pause=lambda _: None) == 1
    assert final.calls == 1


def test_who_stays_busy_is_told_in_words() -> None:
    with pytest.raises(BusyError, match="stayed busy"):
        update_item(double(Table("TransactionConflictException", 1000)), Key={})


def test_nothing_writes_to_the_tables_but_through_the_one_place() -> None:
    methods = {"put_item", "update_item", "delete_item", "transact_write_items", "batch_write_item"}
    found = []
    for path in sorted((ROOT / "fedgrass").rglob("*.py")):
        if path == ROOT / "fedgrass/protocol/writes.py" or path.is_relative_to(ROOT / "fedgrass/local"):
            continue
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        found += [path.name for call in calls if getattr(call.func, "attr", "") in methods]
    assert found == []
