"""Tables in memory that judge conditions as DynamoDB does, and can be told to refuse: quick enough for thousands of schedules.

It knows the expressions that this repository writes (SET, ADD and REMOVE of top-level attributes; comparisons, IN, BETWEEN
not among them, attribute_exists, attribute_not_exists, begins_with, AND, OR, NOT, brackets), and refuses any other with an error.
`tests/explorer/test_explorer_services.py` compares it with moto's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

import boto3

Item = dict[str, Any]
_TOKEN = re.compile(r"\s*(<>|<=|>=|[=<>(),]|[#:A-Za-z_][\w.#]*)")
_MISSING = object()


@cache
def exceptions() -> Any:
    """The classes that a real client raises."""
    client = boto3.client("dynamodb", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    return client.exceptions


def refusal(code: str, **more: Any) -> Exception:
    """Return botocore's exception for an error code."""
    kind = getattr(exceptions(), code, None) or exceptions().ClientError
    error: Exception = kind({"Error": {"Code": code, "Message": code}, **more}, "Write")
    return error


def cancelled(*codes: str) -> Exception:
    """Return what a transaction raises whose actions came to these ends."""
    return refusal("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes])


class Condition:
    """A condition expression, evaluated while it is read (recursive descent)."""

    def __init__(self, item: Item | None, names: Mapping[str, str], values: Mapping[str, Any]) -> None:
        self._item = item or {}
        self._names = names
        self._values = values
        self._tokens: list[str] = []

    def holds(self, expression: str) -> bool:
        if _TOKEN.sub("", expression).strip():
            raise NotImplementedError(expression)
        self._tokens = [match.group(1) for match in _TOKEN.finditer(expression)]
        found = self._either()
        if self._tokens:
            raise NotImplementedError(f"{expression}: {self._tokens}")
        return found

    def _next(self, expected: str | None = None) -> str:
        token = self._tokens.pop(0)
        if expected is not None and token.upper() != expected:
            raise NotImplementedError(f"expected {expected}, found {token}")
        return token

    def _at(self, word: str) -> bool:
        return bool(self._tokens) and self._tokens[0].upper() == word

    def _either(self) -> bool:
        found = self._both()
        while self._at("OR"):
            self._next()
            found = self._both() or found
        return found

    def _both(self) -> bool:
        found = self._one()
        while self._at("AND"):
            self._next()
            found = self._one() and found
        return found

    def _one(self) -> bool:
        if self._at("NOT"):
            self._next()
            return not self._one()
        if self._at("("):
            self._next()
            found = self._either()
            self._next(")")
            return found
        token = self._next()
        if token in {"attribute_exists", "attribute_not_exists", "begins_with"}:
            return self._function(token)
        return self._comparison(self._operand(token))

    def _function(self, name: str) -> bool:
        self._next("(")
        value = self._operand(self._next())
        if name == "begins_with":
            self._next(",")
            prefix = self._operand(self._next())
            self._next(")")
            return isinstance(value, str) and value.startswith(prefix)
        self._next(")")
        return (value is _MISSING) == (name == "attribute_not_exists")

    def _comparison(self, left: Any) -> bool:
        operator = self._next()
        if operator.upper() == "IN":
            self._next("(")
            among = [self._operand(self._next())]
            while self._at(","):
                self._next()
                among.append(self._operand(self._next()))
            self._next(")")
            return left is not _MISSING and left in among
        right = self._operand(self._next())
        if operator == "<>":
            return bool(left != right)  # of a missing attribute too
        if left is _MISSING or right is _MISSING or isinstance(left, str) != isinstance(right, str):
            return False
        compared: dict[str, Callable[[], bool]] = {
            "=": lambda: bool(left == right),
            "<": lambda: bool(left < right),
            "<=": lambda: bool(left <= right),
            ">": lambda: bool(left > right),
            ">=": lambda: bool(left >= right),
        }
        return compared[operator]()

    def _operand(self, token: str) -> Any:
        if token.startswith(":"):
            return stored(self._values[token])
        found: Any = self._item
        for part in token.split("."):
            found = found.get(self._names.get(part, part), _MISSING) if isinstance(found, dict) else _MISSING
        return found


def stored(value: Any) -> Any:
    """Return a value as it is read back; raises `TypeError` for a float, as boto3 does."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes, Decimal)):
        return value
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, dict):
        return {str(key): stored(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [stored(below) for below in value]
    raise TypeError(f"DynamoDB takes no {type(value).__name__}")


class Store:
    """The items of all tables, by table, hash and range key."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str, str], Item] = {}
        self.ranges: dict[str, str] = {}

    def table(self, name: str, range_key: str) -> Any:
        self.ranges[name] = range_key
        return Table(self, name)

    def key(self, table: str, item: Mapping[str, Any]) -> tuple[str, str, str]:
        return table, str(item["fleet"]), str(item[self.ranges[table]])

    def allowed(self, table: str, key: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
        expression = arguments.get("ConditionExpression")
        if not expression:
            return True
        names = arguments.get("ExpressionAttributeNames", {})
        values = arguments.get("ExpressionAttributeValues", {})
        return Condition(self.items.get(self.key(table, key)), names, values).holds(expression)

    def put(self, table: str, item: Item) -> None:
        self.items[self.key(table, item)] = stored(item)

    def update(self, table: str, key: Mapping[str, Any], arguments: Mapping[str, Any]) -> Item:
        at = self.key(table, key)
        item = dict(self.items.get(at, {"fleet": at[1], self.ranges[table]: at[2]}))
        names = arguments.get("ExpressionAttributeNames", {})
        values = {name: stored(value) for name, value in arguments.get("ExpressionAttributeValues", {}).items()}
        for clause, body in _clauses(arguments["UpdateExpression"]):
            for part in body.split(","):
                words = part.replace("=", " ").split()
                name = names.get(words[0], words[0])
                if "." in name or len(words) > 2:
                    raise NotImplementedError(part)
                if clause == "SET":
                    item[name] = values[words[1]]
                elif clause == "ADD":
                    item[name] = item.get(name, Decimal(0)) + values[words[1]]
                else:
                    item.pop(name, None)
        self.items[at] = item
        return item


def _clauses(expression: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"\b(SET|ADD|REMOVE)\b", expression)
    yield from zip(parts[1::2], parts[2::2], strict=True)


class Table:
    """What our code uses of boto3's ``Table``."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.meta = Meta(Client(store))

    def get_item(self, *, Key: Item, **_arguments: Any) -> Item:  # noqa: N803 - boto3's names
        found = self.store.items.get(self.store.key(self.name, Key))
        return {} if found is None else {"Item": stored(found)}

    def put_item(self, *, Item: Item, **arguments: Any) -> Item:  # noqa: N803
        if not self.store.allowed(self.name, Item, arguments):
            raise refusal("ConditionalCheckFailedException")
        self.store.put(self.name, Item)
        return {}

    def update_item(self, *, Key: Item, **arguments: Any) -> Item:  # noqa: N803
        if not self.store.allowed(self.name, Key, arguments):
            raise refusal("ConditionalCheckFailedException")
        item = self.store.update(self.name, Key, arguments)
        return {"Attributes": stored(item)} if arguments.get("ReturnValues") == "ALL_NEW" else {}

    def delete_item(self, *, Key: Item, **arguments: Any) -> Item:  # noqa: N803
        if not self.store.allowed(self.name, Key, arguments):
            raise refusal("ConditionalCheckFailedException")
        self.store.items.pop(self.store.key(self.name, Key), None)
        return {}

    def query(self, *, KeyConditionExpression: str, **arguments: Any) -> Item:  # noqa: N803
        names, values = arguments["ExpressionAttributeNames"], arguments["ExpressionAttributeValues"]
        names = {**names, "#fleet": names.get("#fleet", "fleet")}
        mine = sorted((at, item) for at, item in self.store.items.items() if at[0] == self.name)
        found = [item for _, item in mine if Condition(item, names, values).holds(KeyConditionExpression)]
        return {"Items": stored(found)}


class Meta:
    def __init__(self, client: Client) -> None:
        self.client = client


class Client:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.exceptions = exceptions()

    def batch_get_item(self, *, RequestItems: Item) -> Item:  # noqa: N803
        answers: Item = {}
        for table, wanted in RequestItems.items():
            found = (self._store.items.get(self._store.key(table, key)) for key in wanted["Keys"])
            answers[table] = [stored(item) for item in found if item is not None]
        return {"Responses": answers, "UnprocessedKeys": {}}

    def transact_write_items(self, *, TransactItems: list[Item], **_arguments: Any) -> Item:  # noqa: N803
        """Judge all conditions, then write all or nothing."""
        codes = ["None" if self._holds(action) else "ConditionalCheckFailed" for action in TransactItems]
        if any(code != "None" for code in codes):
            raise cancelled(*codes)
        for action in TransactItems:
            [(kind, arguments)] = action.items()
            table = arguments["TableName"]
            if kind == "Put":
                self._store.put(table, arguments["Item"])
            elif kind == "Update":
                self._store.update(table, arguments["Key"], arguments)
            elif kind == "Delete":
                self._store.items.pop(self._store.key(table, arguments["Key"]), None)
        return {}

    def _holds(self, action: Item) -> bool:
        [(kind, arguments)] = action.items()
        if kind not in {"Put", "Update", "Delete", "ConditionCheck"}:
            raise NotImplementedError(kind)
        return self._store.allowed(arguments["TableName"], arguments.get("Key") or arguments["Item"], arguments)


Perform = Callable[[], Any]
