"""Where a device's examples are and how they are written; apart from what reads them, for NumPy is not needed to know it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from fedgrass.parts import LOADERS

MISSING = ("", "-", "--", "?", "n/a", "na", "nan", "nil", "none", "null", "<na>", "#n/a", "#na", "\\n")
"""Cells that stand for a missing value, whatever their case."""

SAMPLE_WEIGHT = "sample_weight"

# By name too: a tab is hard to write in YAML, and trailing blanks get lost.
_CHARACTERS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}


def _listed(value: object) -> object:
    """Take a list also from text: nucleus lite makes one of every value."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError("is not a JSON list") from error
    return [part.strip() for part in value.split(",")] if value.strip() else []


def _character(value: object) -> object:
    return _CHARACTERS.get(value.lower(), value) if isinstance(value, str) else value


Character = Annotated[str, BeforeValidator(_character), Field(max_length=1)]
Names = Annotated[tuple[Annotated[str, Field(max_length=200)], ...], BeforeValidator(_listed), Field(max_length=65536)]


def way_with_missing(value: str) -> str:
    """Return ``missing`` as it stands; raises `ValueError` if it says nothing that can be done."""
    if value not in ("refuse", "skip", "mean"):
        try:
            known = math.isfinite(float(value))
        except ValueError:
            known = False
        if not known:
            raise ValueError("takes refuse, skip, mean or a number")
    return value


class DataSettings(BaseModel):
    """Where a device's examples are, as the component's configuration says it (camelCase there)."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    loader: str = Field(
        default="npz",
        max_length=200,
        description=f"{', '.join(LOADERS.built_in())}, one that a package registers, or module:function",
    )
    path: str = Field(default="", max_length=1024)
    label: str = Field(
        default="",
        max_length=8192,
        description="Column of y in a table, or several after commas; else as the bundle says, else the last",
    )
    weight: str = Field(
        default=SAMPLE_WEIGHT,
        min_length=1,
        max_length=200,
        description="Column or array of example weights, by which losses are multiplied in training; else 1",
    )
    columns: Names = Field(
        default=(), description="Columns of x in a table, in the model's order; else as the bundle says"
    )
    header: bool | None = Field(default=None, description="Whether a table's first row names the columns; else guessed")
    separator: Character = Field(default="", description="Between a CSV file's cells, or tab, space; else guessed")
    decimal: Character = Field(default="", description="Decimal mark of a CSV file; else guessed")
    thousands: Character = Field(default="", description="Between groups of three digits in a CSV file; else guessed")
    quote: Character = Field(default="", description="Around a CSV file's cells; else guessed")
    comment: Character = Field(default="", description="Begins a CSV file's comment lines; else guessed")
    encoding: str = Field(default="", max_length=40, description="Of a CSV file, such as latin-1; else guessed")
    skip_lines: int = Field(default=0, ge=0, le=10_000, description="Lines before a CSV file's header")
    missing: str = Field(
        default="refuse",
        max_length=40,
        description="For a missing value: refuse the data, skip the row, fill in the mean (of the fleet, see means), or a number",
    )
    missing_values: Names = Field(
        default=MISSING, description="Cells that stand for a missing value, whatever their case"
    )
    means: Annotated[tuple[float, ...], BeforeValidator(_listed), Field(max_length=65536)] = Field(
        default=(), description="One for each column of x, for missing: mean; else as the bundle says"
    )
    max_bad_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of rows, images or files that may be bad; they are left out"
    )
    time: str = Field(default="", max_length=200, description="Column of a row's time, for windowHours")
    window_rows: int = Field(default=0, ge=0, description="Number of newest examples to use; 0: all")
    window_hours: float = Field(
        default=0,
        ge=0,
        le=1e6,
        description="Use examples of the last hours only, by time or by the image's file; 0: all",
    )
    table: str = Field(default="", max_length=200, description="The sqlite loader's table or view; else the only one")
    query: str = Field(default="", max_length=8192, description="The sqlite loader's SELECT, in place of table")
    pixels: str = Field(
        default="",
        max_length=40,
        description="Black and white to the model, such as 0..255; else as the bundle says, else 0..1, or 0..255 if whole",
    )
    validation_fraction: float = Field(default=0.2, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    max_bytes: int = Field(default=1 << 30, ge=1, description="Refuse larger data; images do not count")

    @field_validator("missing")
    @classmethod
    def _missing_is_known(cls, value: str) -> str:
        return way_with_missing(value)

    def keeping_missing(self) -> DataSettings:
        """Return the same, but that missing values of x stay NaN: how many there are is what statistics tell."""
        return self.model_copy(update={"missing": "keep"})

    @property
    def file(self) -> Path:
        """``path`` with the component's environment variables filled in, ``$AWS_IOT_THING_NAME`` among them."""
        return Path(os.path.expandvars(self.path)).expanduser()

    @property
    def fill(self) -> float | None:
        """The number that stands in for a missing value, if it is one for all columns."""
        return None if self.missing in ("refuse", "skip", "mean", "keep") else float(self.missing)
