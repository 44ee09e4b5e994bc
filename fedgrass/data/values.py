"""Cells of a table, which are text or have types, as blocks of numbers by one set of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.data.account import Account
from fedgrass.data.cells import NumberFormat
from fedgrass.data.columns import Layout
from fedgrass.data.labels import LabelError, Labels
from fedgrass.data.rows import Block
from fedgrass.data.times import seconds_of

# Texts whose class is remembered: a label column that holds something else must not fill the memory.
_MOST_TEXTS = 1 << 16


class Values:
    """Turns columns of cells into numbers, and leaves out rows that have none.

    Parameters
    ----------
    what
        Begins each message: ``data /var/lib/mill.csv``.
    since
        Rows before this time, in seconds since 1970, are left out, where the layout has a time column.
    """

    def __init__(
        self, what: str, numbers: NumberFormat, layout: Layout, labels: Labels, account: Account, *, since: float
    ) -> None:
        self._what = what
        self._numbers = numbers
        self._layout = layout
        self._labels = [labels.of_column(column) for column in range(len(layout.labels))]
        self._account = account
        self._since = since
        self.reads_texts = labels.are_texts and labels.maps(len(layout.labels))
        self._texts: list[dict[str, float]] = [{} for _ in self._labels]
        # One dictionary for all columns, if all are read alike.
        if self._labels and self._labels[0] is labels:
            self._texts = self._texts[:1] * len(self._labels)

    @property
    def texts(self) -> dict[str, float]:
        """Classes by label, as far as they have been met, where all columns are read alike."""
        return self._texts[0] if self._texts else {}

    def block(self, columns: Sequence[Sequence[Any]], times: Sequence[Any] | None, rows: NDArray[np.int64]) -> Block:
        """Return the rows that are numbers.

        Parameters
        ----------
        columns
            The layout's needed columns, each [n].
        times
            Its time column.
        rows
            [n] their numbers in the file.

        Raises
        ------
        LabelError
            If a label is text, and the bundle has no class names; or a number that is not a class.
        """
        values, kept = np.empty((len(rows), len(columns))), np.ones(len(rows), bool)
        for at, cells in enumerate(columns):
            for row, value in enumerate(self._column(cells, at, rows)):
                if isinstance(value, str):
                    # A row with two bad cells is one bad row.
                    if kept[row]:
                        self._account.leaves_out(f"{self._place(int(rows[row]), self._layout.needed[at])}: {value}")
                    kept[row], value = False, math.nan
                values[row, at] = value
        if times is not None and self._layout.time is not None:
            kept &= self._are_recent(times, kept, rows, self._layout.time)
        whole = Block(values, rows, lambda row, column: str(columns[column][row]))
        return whole if kept.all() else whole.only(kept)

    def _place(self, row: int, column: int) -> str:
        return f"{self._what}: row {row}, column {self._layout.names[column]!r}"

    def _are_recent(
        self, times: Sequence[Any], kept: NDArray[np.bool_], rows: NDArray[np.int64], column: int
    ) -> NDArray[np.bool_]:
        seconds = np.array([seconds_of(time) for time in times])
        for row in np.flatnonzero(np.isnan(seconds) & kept).tolist():
            self._account.leaves_out(f"{self._place(int(rows[row]), column)}: {str(times[row])[:40]!r} is not a time")
        recent: NDArray[np.bool_] = seconds >= self._since
        return recent

    def _column(self, cells: Sequence[Any], at: int, rows: NDArray[np.int64]) -> Sequence[float | str]:
        """Return a column's values, and for cells that are none what is wrong."""
        label = at - len(self._layout.features)
        is_label = 0 <= label < len(self._labels)
        if not (is_label and self._reads_texts(label)) and (numbers := self._plain(cells)) is not None:
            return numbers
        read = partial(self._label, label) if is_label else self._number
        return [self._cell(cell, read, row, at) for row, cell in zip(rows, cells, strict=True)]

    def _cell(self, cell: Any, read: Callable[[Any], float], row: np.int64, at: int) -> float | str:
        try:
            return read(cell)
        except ValueError as error:
            return str(error)
        except LabelError as error:
            raise error.at_place(self._place(int(row), self._layout.needed[at])) from None

    def _plain(self, cells: Sequence[Any]) -> list[float] | None:
        """Return cells that Python takes for numbers as they are, and so does a `NumberFormat`; None if some are not."""
        # Exact types: to isinstance a bool is an int. Others, such as dates and bytes, go cell by cell.
        kinds = set(map(type, cells))
        if not kinds <= {int, float, str} or (str in kinds and not self._numbers.is_plain):
            return None
        try:
            numbers = list(map(float, cells))
        except (ValueError, OverflowError):
            return None
        odd = not all(map(math.isfinite, numbers)) or (str in kinds and any("_" in str(cell) for cell in cells))
        return None if odd else numbers

    def _number(self, cell: Any) -> float:
        if cell is None:
            return math.nan
        if isinstance(cell, str):
            return self._numbers.number(cell)
        if isinstance(cell, (bytes, bytearray, memoryview)):
            raise ValueError(f"{len(cell)} bytes are not a number")
        try:
            number = float(cell)
        except (TypeError, OverflowError):
            raise ValueError(f"{str(cell)[:40]!r} is not a number") from None
        if math.isinf(number) or (math.isnan(number) and not self._numbers.is_missing("nan")):
            raise ValueError(f"{number} is not finite")
        return number

    def _reads_texts(self, label: int) -> bool:
        return self.reads_texts or (self._labels[label].are_texts and self._labels[label].maps(1))

    def _label(self, label: int, cell: Any) -> float:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return math.nan
        labels, texts = self._labels[label], self._texts[label]
        if not self._reads_texts(label):
            labels.refuse_truth(cell)
            try:
                return self._number(cell)
            except ValueError:
                labels.refuse_text(str(cell))
                raise
        # 2.0 from a database is the class "2".
        text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
        if text not in texts:
            # A class may be called "none" or "n/a": then it is not a missing value.
            if not labels.has(text) and self._numbers.is_missing(text):
                return math.nan
            value = float(labels.of_text(text))
            if len(texts) >= _MOST_TEXTS:
                return value
            texts[text] = value
        return texts[text]
