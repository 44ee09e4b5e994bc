"""DynamoDB is moto's. This has it answer fast: a page of a fleet reads dozens of items, a look at one thousands."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from botocore.utils import merge_dicts
from moto.core.serialize import BaseJSONSerializer
from moto.dynamodb.exceptions import MockValidationException
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType, Item, serializer
from moto.dynamodb.models.table import Table
from moto.dynamodb.models.utilities import find_nested_key

from fedgrass.local.aws.overrides import override

if TYPE_CHECKING:
    from moto.core.model import StructureShape


def repair() -> None:
    """Have moto do once, or to one item, what it does ten times, or to a whole table.

    A value is written under the one type that it has, an item is read once to be projected, and a transaction that is
    cancelled puts back its own items, of which alone it took copies.
    """
    # moto writes a value once for each of the ten types that it could have, and keeps the one that fits.
    structure = BaseJSONSerializer._serialize_type_structure

    def one_type(
        self: BaseJSONSerializer, serialized: dict[str, object], value: object, shape: StructureShape, key: str
    ) -> None:
        if shape.name != "AttributeValue" or not isinstance(value, dict):
            structure(self, serialized, value, shape, key)
            return
        written: dict[str, object] = {}
        for kind, content in value.items():
            self._serialize(written, content, shape.members[kind], kind)
        serialized[key] = written

    override(BaseJSONSerializer, "_serialize_type_structure", one_type)
    override(Item, "project", _project)
    transact = DynamoDBBackend.transact_write_items

    def transact_on_items(self: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
        # The items as they were, of this transaction alone.
        before = [(*place, copy.deepcopy(_item(*place))) for place in _places(self, transact_items)]
        for table, *_ in before:
            # moto deep-copies every table that a transaction names, item by item: for its length a table is its own
            # copy.
            vars(table)["__deepcopy__"] = lambda _memo, table=table: (
                table
            )  # what moto would put back is the table itself
        try:
            transact(self, transact_items)
        except Exception:
            for table, hash_key, range_key, item in before:
                _put_back(table, hash_key, range_key, item)
            raise
        finally:
            # Each table once, however many actions name it.
            for table in {id(table): table for table, *_ in before}.values():
                del vars(table)["__deepcopy__"]

    override(DynamoDBBackend, "transact_write_items", transact_on_items)


def _project(item: Item, expressions: list[list[str]]) -> Item:
    whole = item.to_regular_json()
    found: dict[str, object] = {}
    for path in expressions:
        merge_dicts(found, find_nested_key(path, whole))
    return Item(item.hash_key, item.range_key, dict(serializer.serialize(found)["M"]))


def _places(
    backend: DynamoDBBackend, transact_items: list[dict[str, Any]]
) -> Iterator[tuple[Table, DynamoType, DynamoType | None]]:
    """Yield where each action of a transaction writes; moto itself refuses what has no such place."""
    for item in transact_items:
        for action in item.values():
            with suppress(KeyError, MockValidationException):
                table = backend.tables[action["TableName"]]
                yield table, *backend.get_keys_value(table, action.get("Key") or action["Item"])


def _item(table: Table, hash_key: DynamoType, range_key: DynamoType | None) -> Item | None:
    # With a range key there is a dictionary for each hash key, without one the item itself.
    found: Any = table.items.get(hash_key)  # an item, or items by their range key: moto declares neither
    kept: Item | None = found.get(range_key) if table.has_range_key and found is not None else found
    return kept


def _put_back(table: Table, hash_key: DynamoType, range_key: DynamoType | None, item: Item | None) -> None:
    items: dict[Any, Any] = table.items[hash_key] if table.has_range_key else table.items
    key = range_key if table.has_range_key else hash_key
    if item is None:
        items.pop(key, None)
    else:
        items[key] = item
