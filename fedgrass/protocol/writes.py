"""Writes to the tables: update expressions from plain dictionaries, and the one place where a write is repeated.

A write that meets a transaction on its item is refused, and boto3 does not repeat it; nor does it repeat a transaction that met
another. Notices of many devices are counted in transactions on a round's item, so both are everyday.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html#transaction-conflict-handling
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fedgrass.errors import RecordError
from fedgrass.protocol.items import Table
from fedgrass.protocol.records import to_attribute

BUSY = frozenset(
    {
        "InternalServerError",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
"""Codes of errors that say: not now. Each is the name of the class that botocore raises, where it has one."""

_BUSY_REASONS = frozenset({"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError", "ItemInUse"})
# With the pauses between them some five seconds, on average.
_ATTEMPTS = 12

T = TypeVar("T")


class BusyError(RecordError):
    """A table's item stayed busy through every attempt to write it.

    Cause: Very many devices report at once, or the account's limits for DynamoDB are low.

    Remedy: Nothing, as a rule: functions are repeated by AWS, and a command can be given again.
    """

    code = "busy"


def change(
    *,
    put: Mapping[str, object] | None = None,
    add: Mapping[str, float] | None = None,
    remove: Iterable[str] = (),
    condition: str = "",
    values: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return the arguments of UpdateItem.

    Parameters
    ----------
    put, add, remove
        Attributes and what becomes of them; a None in ``put`` is left as it was.
    condition
        Condition expression; attributes in it are written ``#name``.
    values
        The values that ``condition`` names.
    """
    # DynamoDB would store a NULL, for which attribute_exists holds.
    given = {name: value for name, value in (put or {}).items() if value is not None}
    clauses = []
    if given:
        clauses.append("SET " + ", ".join(f"#{name} = :put_{name}" for name in given))
    if add:
        clauses.append("ADD " + ", ".join(f"#{name} :add_{name}" for name in add))
    gone = list(remove)
    if gone:
        clauses.append("REMOVE " + ", ".join(f"#{name}" for name in gone))
    # Names that an expression does not use are an error of UpdateItem.
    used = {*given, *(add or {}), *gone, *re.findall(r"#(\w+)", condition)}
    bound = {
        **{f":put_{name}": value for name, value in given.items()},
        **{f":add_{name}": value for name, value in (add or {}).items()},
        **(values or {}),
    }
    arguments: dict[str, Any] = {
        "UpdateExpression": " ".join(clauses),
        "ExpressionAttributeNames": {f"#{name}": name for name in sorted(used)},
    }
    if bound:
        arguments["ExpressionAttributeValues"] = to_attribute(bound)
    if condition:
        arguments["ConditionExpression"] = condition
    return arguments


def update_item(table: Table, **arguments: Any) -> Mapping[str, Any]:
    """Do UpdateItem; a condition that does not hold raises boto3's ``ConditionalCheckFailedException``."""
    return _repeated(table.name, lambda: table.update_item(**arguments))


def put_item(table: Table, **arguments: Any) -> Mapping[str, Any]:
    """Do PutItem; a condition that does not hold raises boto3's ``ConditionalCheckFailedException``."""
    return _repeated(table.name, lambda: table.put_item(**arguments))


def put_first(client: Any, table: str, item: Mapping[str, object], *, key: str) -> bool:
    """Do PutItem where there is no such item; for threads, which share a client and no table.

    Parameters
    ----------
    client
        Of DynamoDB.
    table
        The table's name.
    item
        The item, as the client takes it.
    key
        Name of the table's partition key.

    Returns
    -------
    bool
        False if there was one, which stays.
    """
    try:
        # One step of the database's: there is no moment between the look and the write.
        _repeated(
            table,
            lambda: client.put_item(TableName=table, Item=item, ConditionExpression=f"attribute_not_exists({key})"),
        )
    except client.exceptions.ConditionalCheckFailedException:
        return False
    return True


def delete_item(table: Table, **arguments: Any) -> Mapping[str, Any]:
    """Do DeleteItem; no item under the key is not an error."""
    return _repeated(table.name, lambda: table.delete_item(**arguments))


def transact(
    table: Table, actions: Sequence[Mapping[str, object]], *, pause: Callable[[float], None] = time.sleep
) -> int | None:
    """Write all of some changes or none.

    Parameters
    ----------
    table
        Any table, for its client: the actions name their own.
    actions
        As DynamoDB's TransactWriteItems takes them, at most 100.
    pause
        Waits so many seconds between two attempts.

    Returns
    -------
    int or None
        Index of the first action whose condition does not hold; None if all was written.

    Raises
    ------
    BusyError
        If others kept the items busy through every attempt.
    """
    client = table.meta.client
    # Of all attempts: one that was written, and whose answer was lost, is not written again.
    token = str(uuid.uuid4())

    def write() -> int | None:
        try:
            client.transact_write_items(TransactItems=actions, ClientRequestToken=token)
        except client.exceptions.TransactionCanceledException as error:
            codes = [reason.get("Code") for reason in error.response.get("CancellationReasons", [])]
            # Busy first: what another transaction is about to change has not been judged.
            if "ConditionalCheckFailed" in codes and not _BUSY_REASONS & set(codes):
                return codes.index("ConditionalCheckFailed")
            raise
        return None

    return _repeated(table.name, write, pause)


def _repeated(table: str, write: Callable[[], T], pause: Callable[[float], None] | None = None) -> T:
    last: Exception | None = None
    # By hand: the functions' archive has no tenacity.
    for attempt in range(_ATTEMPTS):
        try:
            return write()
        except Exception as error:
            if not _is_busy(getattr(error, "response", {})):  # this package does without botocore
                raise
            last = error
        # Full jitter, up to 1.3 seconds: what collided once must not collide in step again.
        (pause or time.sleep)(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))  # noqa: S311 - jitter
    raise BusyError(f"table {table}: an item stayed busy through {_ATTEMPTS} attempts; try again") from last


def _is_busy(response: Mapping[str, Any]) -> bool:
    code = response.get("Error", {}).get("Code", "")
    if code == "TransactionCanceledException":
        reasons = {reason.get("Code") for reason in response.get("CancellationReasons", [])}
        return bool(reasons & _BUSY_REASONS)
    return code in BUSY
