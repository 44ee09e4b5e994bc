"""DynamoDB is moto's. This has it answer fast: a page of a fleet reads dozens of items, a look at one thousands."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from botocore.utils import merge_dicts
from moto.core.serialize import BaseJSONSerializer
from moto.dynamodb.exceptions import MockValidationException
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType, Item, serializer
from moto.dynamodb.models.table import Table
from moto.dynamodb.models.utilities import find_nested_key


def repair() -> None:
    """Have moto do once, or to one item, what it does ten times, or to a whole table.

    A value is written under the one type that it has, an item is read once to be projected, and a transaction that is
    cancelled puts back its own items, of which alone it took copies.
    """
    structure = BaseJSONSerializer._serialize_type_structure

    def one_type(self: Any, serialized: Any, value: Any, shape: Any, key: str) -> None:
        if shape.name != "AttributeValue" or not isinstance(value, dict):
            structure(self, serialized, value, shape, key)
            return
        written: dict[str, Any] = {}
        for kind, content in value.items():
            self._serialize(written, content, shape.members[kind], kind)
        serialized[key] = written

    BaseJSONSerializer._serialize_type_structure = one_type
    Item.project = _project
    transact = DynamoDBBackend.transact_write_items

    def transact_on_items(self: Any, transact_items: list[dict[str, Any]]) -> None:
        before = [(*place, copy.deepcopy(_item(*place))) for place in _places(self, transact_items)]
        for table, *_ in before:
            table.__deepcopy__ = lambda _memo, table=table: table  # what moto would put back is the table itself
        try:
            transact(self, transact_items)
        except Exception:
            for table, hash_key, range_key, item in before:
                _put_back(table, hash_key, range_key, item)
            raise
        finally:
            for table in {id(table): table for table, *_ in before}.values():
                del table.__deepcopy__

    DynamoDBBackend.transact_write_items = transact_on_items


def _project(item: Any, expressions: list[list[str]]) -> Any:
    whole = item.to_regular_json()
    found: dict[str, Any] = {}
    for path in expressions:
        merge_dicts(found, find_nested_key(path, whole))
    return Item(item.hash_key, item.range_key, serializer.serialize(found)["M"])


def _places(
    backend: Any, transact_items: list[dict[str, Any]]
) -> Iterator[tuple[Table, DynamoType, DynamoType | None]]:
    """Yield where each action of a transaction writes; moto itself refuses what has no such place."""
    for item in transact_items:
        for action in item.values():
            with suppress(KeyError, MockValidationException):
                table = backend.tables[action["TableName"]]
                yield table, *backend.get_keys_value(table, action.get("Key") or action["Item"])


def _item(table: Any, hash_key: DynamoType, range_key: DynamoType | None) -> Any:
    found = table.items.get(hash_key)
    return found.get(range_key) if table.has_range_key and found is not None else found


def _put_back(table: Any, hash_key: DynamoType, range_key: DynamoType | None, item: Any) -> None:
    items, key = (table.items[hash_key], range_key) if table.has_range_key else (table.items, hash_key)
    if item is None:
        items.pop(key, None)
    else:
        items[key] = item
