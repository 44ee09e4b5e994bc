"""Rows of numbers judged one block at a time: missing values, ranges and labels, before any is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Manifest
from fedgrass.data.account import Account
from fedgrass.data.columns import Layout
from fedgrass.data.labels import Doubles, Labels, WrongLabelError
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError
from fedgrass.tensors import Array

Mask = NDArray[np.bool_]

INTEGERS_BELOW = 1 << 24
"""Whole numbers that float32, in which rows are kept, holds exactly."""


@dataclass(frozen=True)
class Block:
    """Some rows: the layout's needed columns as float64 [n, columns], NaN where a value is missing.

    ``rows`` [n] are their numbers in the file, and ``text`` says what stands in a cell, by row of the block and column.
    """

    values: Doubles
    rows: NDArray[np.int64]
    text: Callable[[int, int], str]

    def __len__(self) -> int:
        return len(self.values)

    def only(self, kept: Mask) -> Block:
        """Return these rows."""
        places = np.flatnonzero(kept)
        return Block(self.values[kept], self.rows[kept], lambda row, column: self.text(int(places[row]), column))


class Judge:
    """Lets through what the model takes, and accounts for the rest."""

    def __init__(self, manifest: Manifest, settings: DataSettings, labels: Labels, account: Account) -> None:
        self._manifest = manifest
        self._settings = settings
        self._labels = labels
        self._account = account
        self._means = _means(manifest, settings, account.what)
        self._markers = [number for number in map(_number, settings.missing_values) if np.isfinite(number)]

    def passed(self, block: Block, layout: Layout) -> Array:
        """Return the rows that are fit, as float32.

        Raises
        ------
        DataError
            If a value is missing and the settings have no way for that, or a label is not a class.
        """
        # Missing values before ranges: a filled value is judged like any other.
        block = self._complete(block, layout)
        block = self._in_range(block, layout)
        values, at = block.values, len(layout.features)
        labels = slice(at, at + len(layout.labels))
        if layout.labels:
            try:
                values[:, labels] = self._labels.of_columns(values[:, labels])
            except WrongLabelError as error:
                row, column = divmod(error.at, len(layout.labels))
                raise DataError(f"{self._place(block, layout, row, at + column)}: {error}") from error
        self._account.good += len(values)
        return values.astype(np.float32)

    def _complete(self, block: Block, layout: Layout) -> Block:
        at = len(layout.features)
        # Where labels are texts, the label columns hold class numbers by now: a marker such as -1 or 999 must not
        # match those.
        numbers = block.values[:, : at if self._labels.are_texts else None]
        if self._markers:
            numbers[np.isin(numbers, self._markers)] = np.nan
        missing: Mask = np.isnan(block.values)
        if not missing.any():
            return block
        if self._settings.missing == "refuse":
            row, column = (int(index[0]) for index in np.nonzero(missing))
            raise DataError(
                f"{self._place(block, layout, row, column)}: {block.text(row, column)[:40]!r} is not a number but a missing "
                "value; set missing to skip, mean or a number to go on without it"
            )
        # Only features can be filled in: a row without its label teaches nothing.
        keep = self._settings.missing == "keep" and np.dtype(self._manifest.x.dtype).kind == "f"
        skip = self._settings.missing == "skip" or (self._settings.missing == "keep" and not keep)
        whole = ~missing.any(axis=1) if skip else ~missing[:, at:].any(axis=1)
        self._account.skipped += int((~whole).sum())
        block, missing = block.only(np.asarray(whole)), missing[whole]
        rows, columns = np.nonzero(missing)
        if len(rows) and not keep:
            block.values[rows, columns] = self._means[columns]
            self._account.filled += len(rows)
        return block

    def _in_range(self, block: Block, layout: Layout) -> Block:
        at, unfit = len(layout.features), np.zeros(block.values.shape, bool)
        end = at + len(layout.labels)
        dtypes = [self._manifest.x.dtype] * at + [self._stored_label(layout)] * len(layout.labels)
        for columns in filter(lambda span: span.start < span.stop, (slice(0, at), slice(at, end))):
            unfit[:, columns] = outside(block.values[:, columns], dtypes[columns.start])
        # What is left are weights.
        unfit[:, end:] = (block.values[:, end:] < 0) | outside(block.values[:, end:], "float32")
        bad = np.asarray(unfit.any(axis=1))
        if not bad.any():
            return block
        for row in np.flatnonzero(bad):
            column = int(np.argmax(unfit[row]))
            place, value = self._place(block, layout, int(row), column), block.values[row, column]
            wrong = (
                f"{expected(dtypes[column])}, which the model takes"
                if column < end
                else "not a weight, which is 0 or more"
            )
            self._account.leaves_out(f"{place}: {value:.10g} is {wrong}")
        return block.only(~bad)

    def _stored_label(self, layout: Layout) -> str:
        """Return the dtype that labels are held against: a class is whole, whatever y's dtype."""
        # Named numbers may be anything, 2.5 too; which of them are classes is looked up later.
        maps = self._labels.maps(len(layout.labels)) and not self._labels.are_numbers
        return "int32" if maps else self._manifest.y.dtype if not self._labels.are_numbers else "float32"

    def _place(self, block: Block, layout: Layout, row: int, column: int) -> str:
        name = layout.names[layout.needed[column]]
        return f"{self._account.what}: row {block.rows[row]}, column {name!r}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def limits(dtype: str) -> tuple[float, float]:
    """Return the least and the greatest value that a dtype holds; of the wide whole ones what float32 holds exactly."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        most = float(np.finfo(kind).max)
        return -most, most
    if kind.kind == "b":
        return 0.0, 1.0
    info = np.iinfo(kind)
    return float(max(info.min, 1 - INTEGERS_BELOW)), float(min(info.max, INTEGERS_BELOW - 1))


def outside(values: Doubles, dtype: str) -> Mask:
    """Return where values do not fit the dtype: too large, or not whole where it is."""
    low, high = limits(dtype)
    wrong = (values < low) | (values > high)
    return wrong if np.dtype(dtype).kind == "f" else wrong | (values != np.rint(values))


def expected(dtype: str) -> str:
    """Return in words what a value that is `outside` is not."""
    low, high = limits(dtype)
    if np.dtype(dtype).kind == "f":
        return f"beyond {dtype}, which ends at {high:g}"
    if high == INTEGERS_BELOW - 1:
        return f"not a whole number below {INTEGERS_BELOW}"
    return f"not a whole number from {low:g} to {high:g}"


def _means(manifest: Manifest, settings: DataSettings, what: str) -> Doubles:
    """Return what fills each column of x."""
    if settings.fill is not None:
        return np.full(manifest.x.size, settings.fill)
    if settings.missing != "mean":
        return np.empty(0)
    means = settings.means or manifest.data.means
    if len(means) != manifest.x.size:
        raise DataError(
            f"{what}: missing is mean, and there are {len(means)} means for the {manifest.x.size} values of x; give means in the "
            "device's configuration, or export the model with them"
        )
    return np.array(means, np.float64)
