"""Update expressions of DynamoDB from plain dictionaries, and transactions that bear contention."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedgrass.errors import RecordError
from fedgrass.protocol.records import RoundRecord, round_key, to_attribute
from fedgrass.protocol.tables import Table

_ATTEMPTS = 12


def change(
    *,
    put: Mapping[str, Any] | None = None,
    add: Mapping[str, float] | None = None,
    remove: Iterable[str] = (),
    condition: str = "",
    values: Mapping[str, Any] | None = None,
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
    given = {name: value for name, value in (put or {}).items() if value is not None}
    clauses = []
    if given:
        clauses.append("SET " + ", ".join(f"#{name} = :put_{name}" for name in given))
    if add:
        clauses.append("ADD " + ", ".join(f"#{name} :add_{name}" for name in add))
    gone = list(remove)
    if gone:
        clauses.append("REMOVE " + ", ".join(f"#{name}" for name in gone))
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


def change_round(rounds: Table, fleet: str, number: int, **clauses: Any) -> RoundRecord | None:
    """Change a round's record and return it as it is then, or None if the condition does not hold."""
    try:
        answer = rounds.update_item(
            Key={"fleet": fleet, "key": round_key(number)}, ReturnValues="ALL_NEW", **change(**clauses)
        )
    except rounds.meta.client.exceptions.ConditionalCheckFailedException:
        return None
    return RoundRecord.from_item(answer["Attributes"])


def transact(table: Table, actions: list[dict[str, Any]], *, pause: Callable[[float], None] = time.sleep) -> int | None:
    """Write all of ``actions`` or none.

    Returns
    -------
    int or None
        Index of the first action whose condition does not hold; None if all was written.

    Raises
    ------
    RecordError
        If others kept the items busy through every attempt.
    """
    for attempt in range(_ATTEMPTS):
        try:
            table.meta.client.transact_write_items(TransactItems=actions)
            return None
        except table.meta.client.exceptions.TransactionCanceledException as error:
            codes = [reason.get("Code") for reason in error.response.get("CancellationReasons", [])]
            if "ConditionalCheckFailed" in codes:
                return codes.index("ConditionalCheckFailed")
        # Many devices count on one item at a time: the SDK does not repeat a transaction that met another.
        pause(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))  # noqa: S311 - jitter
    raise RecordError(f"table {table.name}: its items stayed busy through {_ATTEMPTS} attempts; it will be tried again")
