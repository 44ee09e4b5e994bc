"""Lines of one plain row each, parsed by NumPy's reader: several times as fast as cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedgrass.data.columns import Layout
from fedgrass.data.dialect import Dialect
from fedgrass.data.labels import Doubles


def parse(
    lines: list[str], dialect: Dialect, layout: Layout, width: int, texts: Mapping[str, float] | None
) -> Doubles | None:
    """Return the needed columns [n, columns], NaN where a value is missing; None if a line is not plain.

    Parameters
    ----------
    width
        How many cells each line has.
    texts
        Classes by label, where labels are text; a label that it lacks makes a line not plain.
    """
    if not lines or not _are_plain(lines, dialect, width):
        return None
    if texts is None:
        return _numbers(lines, dialect, layout.needed)
    codes = [_codes(lines, dialect.separator, column, texts) for column in layout.labels]
    numbers = (*layout.features, *(() if layout.weight is None else (layout.weight,)))
    values = None if any(code is None for code in codes) else _numbers(lines, dialect, numbers)
    if values is None:
        return None
    at = len(layout.features)
    return np.column_stack([values[:, :at], *(code for code in codes if code is not None), values[:, at:]])


def _are_plain(lines: list[str], dialect: Dialect, width: int) -> bool:
    text, mark = "".join(lines), dialect.separator
    # Characters that mean something to CSV and nothing to NumPy's reader: with one of them, cells could be read
    # otherwise.
    odd = [dialect.quote, "\0", *filter(None, (dialect.comment, dialect.escape, dialect.numbers.thousands))]
    if dialect.numbers.decimal != ".":
        odd += [".", *([","] if mark == "," else [])]
    if any(character in text for character in odd):
        return False
    return all(line.count(mark) == width - 1 and not line.isspace() for line in lines)


def _codes(lines: list[str], mark: str, column: int, texts: Mapping[str, float]) -> Doubles | None:
    found = [texts.get(line.split(mark)[column].strip(), -1.0) for line in lines]
    return None if min(found) < 0 else np.array(found)


def _numbers(lines: list[str], dialect: Dialect, columns: Sequence[int]) -> Doubles | None:
    mark, decimal, missing = dialect.separator, dialect.numbers.decimal, dialect.numbers.missing
    if decimal != ".":
        lines = [line.replace(decimal, ".") for line in lines]
    values = _read(lines, mark, columns)
    # NumPy refuses empty cells, so they are named and read once more.
    if values is None and "" in missing and mark != " " and all(line.strip(f"{mark} \t\r\n") for line in lines):
        values = _read([_with_nan(line, mark) for line in lines], mark, columns)
    if values is None or len(values) != len(lines) or np.isinf(values).any():
        return None
    return values if "nan" in missing or not np.isnan(values).any() else None


def _read(lines: list[str], mark: str, columns: Sequence[int]) -> Doubles | None:
    try:
        return np.loadtxt(lines, np.float64, delimiter=mark, comments=None, usecols=list(columns), ndmin=2)
    except ValueError:
        return None


def _with_nan(line: str, mark: str) -> str:
    """Return a line whose empty cells say ``nan``."""
    line, two, filled = line.rstrip("\r\n"), 2 * mark, f"{mark}nan{mark}"
    # Twice, because matches do not overlap: `,,,` leaves a pair behind.
    line = line.replace(two, filled).replace(two, filled)
    return ("nan" if line.startswith(mark) else "") + line + ("nan" if line.endswith(mark) else "")
