"""Examples from a CSV file, without pandas and in bounded memory.

The file is read once, row by row, into one float32 matrix: in memory while that is small, else in an unnamed temporary file
(in ``TMPDIR``) that is mapped and vanishes with the process.
"""

from __future__ import annotations

import csv
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Indices
from fedgrass.engines.base import Batch
from fedgrass.errors import DataError
from fedgrass.tensors import Array

_IN_MEMORY_BYTES = 64 << 20
_ROWS = 4096
_INTEGERS_BELOW = 1 << 24
"""Whole numbers that float32 holds exactly."""


class Table:
    """Rows of a CSV file as examples of one model.

    A first row that is not all numbers names the columns. ``label`` names the column of y; without it, y are the last columns.
    All other columns, in their order, make up x in row-major order. A label may be one of the manifest's class names; one
    that reads as a number is that number.

    Raises
    ------
    DataError
        Naming the file, the row (the header is row 1) and the column of what is wrong.
    """

    def __init__(self, path: Path, manifest: Manifest, *, label: str = "", max_bytes: int) -> None:
        self._path = path
        self._manifest = manifest
        self._classes = {name: index for index, name in enumerate(manifest.class_names)}
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                rows = csv.reader(stream)
                first = next(rows, [])
                self._names = [f"{i + 1}" for i in range(len(first))] if self._is_data(first) else first
                self._labels = self._label_columns(label)
                self._features = [column for column in range(len(self._names)) if column not in self._labels]
                self._whole = [
                    column
                    for columns, wanted in ((self._features, manifest.x), (self._labels, manifest.y))
                    for column in columns
                    if np.dtype(wanted.dtype).kind in "iu"
                ]
                if self._names is first:
                    self._matrix = self._read(rows, max_bytes, first_row=2)
                else:
                    self._matrix = self._read(itertools.chain([first], rows), max_bytes, first_row=1)
        except OSError as error:
            raise DataError(f"data {path}: cannot be read ({error.strerror or error})") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"data {path}: is no CSV text in UTF-8 ({error})") from error

    def __len__(self) -> int:
        return len(self._matrix)

    def read(self, indices: Indices) -> Batch:
        """Return these rows; see `fedgrass.data.arrays.Source`."""
        rows = self._matrix[indices]
        x, y = self._manifest.x, self._manifest.y
        return Batch(
            rows[:, self._features].reshape(-1, *x.shape).astype(x.dtype),
            rows[:, self._labels].reshape(-1, *y.shape).astype(y.dtype),
        )

    def _label_columns(self, label: str) -> list[int]:
        wanted, features = self._manifest.y.size, self._manifest.x.size
        if len(self._names) != wanted + features:
            raise DataError(
                f"data {self._path}: {len(self._names)} columns; model {self._manifest.name!r} takes {features} for x and "
                f"{wanted} for y"
            )
        if not label:
            return list(range(features, features + wanted))
        if label not in self._names or wanted != 1:
            raise DataError(f"data {self._path}: no single label column {label!r} among {', '.join(self._names[:20])}")
        return [self._names.index(label)]

    def _read(self, rows: Iterator[list[str]], max_bytes: int, *, first_row: int) -> Array:
        matrix, number = _Matrix(len(self._names)), first_row
        while block := list(itertools.islice(rows, _ROWS)):
            matrix.add(self._numbers(block, number))
            number += len(block)
            if matrix.nbytes > max_bytes:
                raise DataError(f"data {self._path}: more than {max_bytes} bytes as float32 (maxBytes)")
        return matrix.finished()

    def _numbers(self, block: Sequence[list[str]], first: int) -> Array:
        """Return the block's rows as float32; blank ones are left out."""
        filled = [(first + i, row) for i, row in enumerate(block) if row]
        for number, row in filled:
            if len(row) != len(self._names):
                raise DataError(f"data {self._path}: row {number}: {len(row)} columns, expected {len(self._names)}")
        try:
            values = np.array([row for _, row in filled], np.float64)
        except ValueError:
            values = np.array([[self._number(c, text, number) for c, text in enumerate(row)] for number, row in filled])
        rounded = values.astype(np.float32).reshape(-1, len(self._names))
        whole = rounded[:, self._whole]
        odd = (whole != np.rint(whole)) | (np.abs(whole) >= _INTEGERS_BELOW)
        if odd.any():
            at, column = (int(index[0]) for index in np.nonzero(odd))
            raise DataError(
                f"data {self._path}: row {filled[at][0]}, column {self._names[self._whole[column]]!r}: {whole[at, column]} "
                f"is no whole number below {_INTEGERS_BELOW}, which the model takes"
            )
        return rounded

    def _number(self, column: int, text: str, row: int) -> float:
        if column in self._labels and text in self._classes:
            return self._classes[text]
        try:
            return float(text)
        except ValueError:
            known = (
                f" or one of {', '.join(list(self._classes)[:10])}" if column in self._labels and self._classes else ""
            )
            raise DataError(
                f"data {self._path}: row {row}, column {self._names[column]!r}: {text[:40]!r} is not a number{known}"
            ) from None

    def _is_data(self, row: list[str]) -> bool:
        return all(text in self._classes or _is_number(text) for text in row)


class _Matrix:
    """Rows that are collected in memory while they are few, and in a temporary file from then on."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._blocks: list[Array] = []
        self._file: IO[bytes] | None = None
        self.nbytes = 0

    def add(self, rows: Array) -> None:
        self.nbytes += rows.nbytes
        self._blocks.append(rows)
        if self.nbytes > _IN_MEMORY_BYTES:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its mapping
            self._file.writelines(block.tobytes() for block in self._blocks)
            self._blocks = []

    def finished(self) -> Array:
        if self._file is None:
            return np.concatenate([np.empty((0, self._columns), np.float32), *self._blocks])
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=(self.nbytes // (4 * self._columns), self._columns))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
