"""Where a table's columns are named: in its first row, below other lines, in a comment, or nowhere."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedgrass.data.cells import NumberFormat
from fedgrass.data.columns import Wanted
from fedgrass.data.dialect import Dialect
from fedgrass.data.labels import Labels
from fedgrass.data.records import Record
from fedgrass.errors import DataError

# Records among which a header is looked for: instruments write some lines about themselves first.
_SEARCHED = 50


@dataclass(frozen=True)
class Header:
    """The names, or the first row of a table that has none; and how many lines are behind it."""

    cells: list[str]
    named: bool
    used: int


def find(found: Iterable[Record], wanted: Wanted, dialect: Dialect, labels: Labels, *, header: bool | None) -> Header:
    """Find the header among a file's first records.

    Parameters
    ----------
    header
        Whether there is one; None: if a row has all names that are known to be columns', or the first is not of values.
    """
    first: Record | None = None
    for at, record in enumerate(found):
        cells = _uncommented(record, dialect)
        # Known names are certain wherever they stand; without any, the first row is judged by what it looks like.
        if header is not False and wanted.are_all_in(cells):
            return Header(cells, named=True, used=record.used)
        if first is None and record.cells:
            first = record
        if at >= _SEARCHED or (first is not None and (header is False or not wanted.x)):
            break
    if first is None:
        return Header([], named=False, used=0)
    named = header if header is not None else not is_data(first.cells, dialect.numbers, labels, wanted)
    return Header(first.cells, named=named, used=first.used if named else first.used - first.lines)


def _uncommented(record: Record, dialect: Dialect) -> list[str]:
    if not record.comment:
        return record.cells
    try:
        return next(iter(dialect.reader([record.comment[len(dialect.comment) :]])), [])
    except csv.Error:
        return []


def is_data(row: Sequence[str], numbers: NumberFormat, labels: Labels, wanted: Wanted) -> bool:
    """Say whether a first row holds data rather than column names.

    Parameters
    ----------
    row
        Its cells.
    numbers
        How numbers and missing values are written.
    labels
        The class names.
    wanted
        The columns that the model needs.

    Returns
    -------
    bool
        Whether all its cells are numbers, class names or missing, and one at least is not missing. Beside a text it is enough
        that one is a number or a class name.
    """
    cells = [cell for cell in row if not numbers.is_missing(cell)]
    if wanted.is_text:
        return any(_is_value(cell, numbers, labels) for cell in cells)
    return bool(cells) and all(_is_value(cell, numbers, labels) for cell in cells)


def _is_value(cell: str, numbers: NumberFormat, labels: Labels) -> bool:
    try:
        numbers.number(cell)
    except ValueError:
        try:
            return bool(labels.names) and labels.of_text(cell) >= 0
        except (ValueError, DataError):
            return False
    return True
