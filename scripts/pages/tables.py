"""Tables of pydantic models, from their JSON schemas."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel

HEADING = "| field | type | default | |\n|---|---|---|---|\n"

_BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "maxItems": "items ≤",
    "maxProperties": "entries ≤",
}


def section(model: type[BaseModel], level: str = "###") -> str:
    """Return a heading, the model's docstring and a row for each field."""
    schema = model.model_json_schema(by_alias=True)
    lines = [
        f"| `{name}` | {kind(field)} | {default(field, required=name in schema.get('required', ()))} | {remark(field)} |"
        for name, field in schema["properties"].items()
    ]
    return f"{level} {model.__name__}\n\n{text(model)}\n\n{HEADING}" + "\n".join(lines) + "\n"


def text(thing: Any) -> str:
    """Return a docstring as Markdown."""
    return inspect.cleandoc(thing.__doc__ or "").replace("``", "`")


def kind(field: dict[str, Any]) -> str:
    """Return a field's type in words, with its choices; another model is a link to its section."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        # null only says that the field may be left out.
        return " or ".join(kind(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}" if "items" in field else "list"
    if field.get("type") == "object" and "additionalProperties" in field:
        return f"object of {kind(field['additionalProperties'])}"
    return str(field.get("format", field.get("type", "any")))


def default(field: dict[str, Any], *, required: bool) -> str:
    """Return a field's default as JSON would have it."""
    if required:
        return "**required**"
    value = field.get("default")
    # Structures as defaults would fill the cell; their own section shows them.
    if value is None or value == "" or isinstance(value, (dict, list)):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def remark(field: dict[str, Any]) -> str:
    """Return a field's bounds and description."""
    schemas = [field, *field.get("anyOf", ())]
    bounds = [f"{sign} {schema[name]:,}" for schema in schemas for name, sign in _BOUNDS.items() if name in schema]
    bounds += [f"`{schema['pattern']}`".replace("|", "\\|") for schema in schemas if "pattern" in schema]
    return ", ".join(bounds) + ("; " if bounds and "description" in field else "") + str(field.get("description", ""))


def nested(model: type[BaseModel]) -> list[str]:
    """Names of the models that a model is put together of."""
    return sorted(model.model_json_schema(by_alias=True).get("$defs", ()))
