"""DynamoDB is moto's. This has it answer fast, as a page of a fleet reads dozens of items and a look at one thousands."""

from __future__ import annotations

from typing import Any

from botocore.utils import merge_dicts
from moto.core.serialize import BaseJSONSerializer
from moto.dynamodb.models.dynamo_type import Item, serializer
from moto.dynamodb.models.utilities import find_nested_key


def repair() -> None:
    """Have moto write a value under the one type that it has, not look for all ten, and read an item once to project it."""
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


def _project(item: Any, expressions: list[list[str]]) -> Any:
    whole = item.to_regular_json()
    found: dict[str, Any] = {}
    for path in expressions:
        merge_dicts(found, find_nested_key(path, whole))
    return Item(item.hash_key, item.range_key, serializer.serialize(found)["M"])
