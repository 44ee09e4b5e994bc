"""A form made from the settings' own model, and read back by it: names, bounds, help and errors have one source."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from fedgrass.cloud.console.charts import Chart
from fedgrass.protocol.settings import FleetSettings

Kind = Literal["text", "number", "choice", "switch", "json"]

# The settings' own schema: a new setting shows in the form without a line here.
_SCHEMA = FleetSettings.model_json_schema()
_GENERAL = "general"
_BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "less than {}"),
)


@dataclass
class Field:
    """One setting: ``name`` is its path, such as ``fit.epochs``."""

    name: str
    label: str
    kind: Kind
    value: str
    default: str
    help: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    whole: bool = False
    error: str = ""

    @property
    def changed(self) -> bool:
        """Whether it differs from the default."""
        return self.value != self.default


@dataclass
class Section:
    """The settings of one object; those of the outermost come first."""

    name: str
    title: str
    help: str
    fields: list[Field] = field(default_factory=list)
    error: str = ""
    chart: Chart | None = None


@dataclass
class Form:
    """All settings, with what was wrong with what was typed."""

    sections: list[Section]
    error: str = ""

    @property
    def fields(self) -> Iterator[Field]:
        """Every field."""
        return (one for section in self.sections for one in section.fields)

    @property
    def wrong(self) -> list[Field]:
        """Fields with an error."""
        return [one for one in self.fields if one.error]


def form_of(settings: FleetSettings, only: Collection[str] = ()) -> Form:
    """Return the form that shows these settings; all of them, or those of the names given: settings, or objects of some."""
    values = settings.model_dump(mode="json")
    defaults = FleetSettings().model_dump(mode="json")
    general = Section(_GENERAL, "Rounds", "" if only else "What a round does unless its start says otherwise.")
    sections = [general]
    for name, described in _SCHEMA["properties"].items():
        if only and name not in only:
            continue
        target = _resolved(described)
        # A plain value belongs to the first section; an object makes one of its own.
        if target.get("type") != "object" or "properties" not in target:
            general.fields.append(_field(name, name, target, values[name], defaults[name]))
            continue
        sections += _sections(name, target, values[name], defaults[name])
    return Form(sections)


def _sections(path: str, target: dict[str, Any], values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Section]:
    """Yield the section of an object, and one for each object in it: fields are plain, whatever lies how deep."""
    words = [word.replace("_", " ") for word in path.split(".")]
    section = Section(path, ": ".join(words).capitalize(), _first_paragraph(target.get("description", "")))
    within: list[Section] = []
    for inner, described in target["properties"].items():
        schema = _resolved(described)
        below = f"{path}.{inner}"
        if schema.get("type") == "object" and "properties" in schema:
            within += _sections(below, schema, values[inner], defaults[inner])
        else:
            section.fields.append(_field(below, inner, schema, values[inner], defaults[inner]))
    yield section
    yield from within


def read(
    typed: Mapping[str, str], base: FleetSettings | None = None, only: Collection[str] = ()
) -> tuple[Form, FleetSettings | None]:
    """Read what was typed; returns the form with it, and the settings unless something in it is wrong.

    Parameters
    ----------
    typed
        What the browser sent, by name.
    base
        What the settings are that the form does not have.
    only
        As of `form_of`.
    """
    form = form_of(FleetSettings(), only)
    document: dict[str, Any] = {} if base is None else base.model_dump(mode="json")
    for one in form.fields:
        one.value = _typed(one, typed)
        *objects, name = one.name.split(".")
        below = document
        for outer in objects:
            below = below.setdefault(outer, {})
        try:
            below[name] = _parsed(one)
        except ValueError as error:
            one.error = f"Not valid JSON: {error}"
    # Values that are no JSON cannot be validated; those errors first.
    if form.wrong:
        return form, None
    try:
        return form, FleetSettings.model_validate(document)
    except ValidationError as error:
        for problem in error.errors():
            _place(form, [str(part) for part in problem["loc"]], problem["msg"].removeprefix("Value error, "))
        return form, None


def differences(before: FleetSettings, after: FleetSettings) -> dict[str, Any]:
    """Return what an execution's input must say to have ``after`` where the fleet's settings are ``before``."""
    return _different(before.model_dump(mode="json"), after.model_dump(mode="json"))


def _different(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in after.items():
        if value == before.get(name):
            continue
        below = before.get(name)
        found[name] = _different(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return found


def _typed(one: Field, typed: Mapping[str, str]) -> str:
    # Browsers send nothing for a box that is not ticked.
    if one.kind == "switch":
        return "true" if one.name in typed else "false"
    return typed.get(one.name, "").strip()


def _parsed(one: Field) -> object:
    if one.kind == "switch":
        return one.value == "true"
    if one.kind == "json":
        return json.loads(one.value or one.default)
    if one.optional and not one.value:
        return None
    return one.value


def _place(form: Form, where: list[str], message: str) -> None:
    """Put a message at the field that is meant; at its section or the whole form, if it is about several."""
    path = ".".join(where)
    for one in form.fields:
        # An error inside a list or an object names a path below the field.
        if path == one.name or path.startswith(one.name + "."):
            one.error = message
            return
    # The innermost object that it is about.
    for section in reversed(form.sections):
        if path == section.name or path.startswith(section.name + "."):
            section.error = message
            return
    form.error = message


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; what a reference adds beside it, such as a description, wins."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return {**_SCHEMA["$defs"][name], **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _field(path: str, name: str, schema: dict[str, Any], value: object, default: object) -> Field:
    options = schema.get("anyOf", ())
    optional = any(option.get("type") == "null" for option in options)
    if optional:
        # Pydantic writes `X | None` as anyOf; what is said beside it, such as the title, stays.
        schema = {**schema, **next(option for option in options if option.get("type") != "null")}
    kind: Kind = "text"
    if "enum" in schema:
        kind = "choice"
    elif schema.get("type") in {"integer", "number"}:
        kind = "number"
    elif schema.get("type") == "boolean":
        kind = "switch"
    elif schema.get("type") in {"object", "array"}:
        kind = "json"
    return Field(
        name=path,
        label=name.replace("_", " ").capitalize(),
        kind=kind,
        value=_as_text(value),
        default=_as_text(default),
        help=_help(schema, optional),
        choices=("",) * optional + tuple(schema.get("enum", ())),
        optional=optional,
        whole=schema.get("type") == "integer",
    )


def _help(schema: dict[str, Any], optional: bool) -> str:
    bounds = " and ".join(words.format(_number(schema[name])) for name, words in _BOUNDS if name in schema)
    parts = [
        schema.get("description", "").replace("``", ""),
        bounds[:1].upper() + bounds[1:],
        "Empty: not set" if optional else "",
    ]
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _first_paragraph(text: str) -> str:
    return text.split("\n\n", 1)[0].replace("\n", " ").replace("``", "")


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
