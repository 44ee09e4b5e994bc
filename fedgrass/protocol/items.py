"""Items of the two tables, read one by one, by their keys, or in the order of their keys.

Tables are boto3's ``Table`` resources, passed in: this package does without boto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

_Call: TypeAlias = Callable[..., Mapping[str, Any]]


class Table(Protocol):
    """What is used of boto3's ``Table``."""

    @property
    def name(self) -> str:
        """The table's name."""
        ...

    @property
    def meta(self) -> Any:
        """What leads to the client, for transactions."""
        ...

    @property
    def get_item(self) -> _Call:
        """GetItem."""
        ...

    @property
    def put_item(self) -> _Call:
        """PutItem."""
        ...

    @property
    def update_item(self) -> _Call:
        """UpdateItem."""
        ...

    @property
    def delete_item(self) -> _Call:
        """DeleteItem."""
        ...

    @property
    def query(self) -> _Call:
        """Query."""
        ...


def get_item(table: Table, fleet: str, key: str) -> dict[str, Any] | None:
    """Read one item, with a consistent read.

    Parameters
    ----------
    table
        The rounds' table.
    fleet
        Its partition key.
    key
        Its range key.

    Returns
    -------
    dict or None
        The item; None if there is none.
    """
    # Consistent: a round that opened a moment ago must be seen.
    item: dict[str, Any] | None = table.get_item(Key={"fleet": fleet, "key": key}, ConsistentRead=True).get("Item")
    return item


def items_below(
    table: Table,
    range_name: str,
    fleet: str,
    prefix: str,
    *,
    attributes: Sequence[str] = (),
    consistent: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a fleet's items whose range key begins with a prefix, in the order of their keys.

    Parameters
    ----------
    table
        Either table.
    range_name
        Name of the table's range key: ``key`` of the rounds' table, ``thing`` of the devices'.
    fleet
        The partition key.
    prefix
        Empty for all items.
    attributes
        Names of the attributes to read; all if empty. It saves transfer, not read units.
    consistent
        Whether writes of the last moments must be seen, at twice the read units.

    Yields
    ------
    dict
        An item; pages are asked for as they are needed.
    """
    condition = "#fleet = :fleet"
    # Aliases for all names: many of them (key, status, …) are reserved words of DynamoDB.
    names = {"#fleet": "fleet", **{f"#only_{name}": name for name in attributes}}
    values = {":fleet": fleet}
    if prefix:
        condition += " AND begins_with(#range, :prefix)"
        names["#range"] = range_name
        values[":prefix"] = prefix
    arguments: dict[str, Any] = {
        "KeyConditionExpression": condition,
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }
    if consistent:
        arguments["ConsistentRead"] = True
    if attributes:
        arguments["ProjectionExpression"] = ", ".join(f"#only_{name}" for name in attributes)
    while True:
        page = table.query(**arguments)
        yield from page["Items"]
        # A page ends after 1 MB that was read, whatever was left of it by the projection.
        if "LastEvaluatedKey" not in page:
            return
        arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def items_under(table: Table, range_name: str, fleet: str, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read the items under some range keys, a hundred at a time, which is what BatchGetItem takes.

    Parameters
    ----------
    table
        Either table.
    range_name
        Name of the table's range key.
    fleet
        The partition key.
    keys
        The range keys.

    Yields
    ------
    dict
        Those items that exist, in no particular order.
    """
    for first in range(0, len(keys), 100):
        wanted = [{"fleet": fleet, range_name: key} for key in keys[first : first + 100]]
        while wanted:
            answer = table.meta.client.batch_get_item(
                RequestItems={table.name: {"Keys": wanted, "ConsistentRead": True}}
            )
            yield from answer["Responses"].get(table.name, ())
            # DynamoDB gives back the keys that it had no time for, or no room in its answer.
            wanted = answer.get("UnprocessedKeys", {}).get(table.name, {}).get("Keys", [])
