"""Examples from the rows of a table, in bounded memory.

What reads the table hands over its rows a block at a time. They are kept as one float32 matrix: in memory while that is small,
else in an unnamed temporary file (in ``TMPDIR``) that is mapped and vanishes with the process.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Manifest
from fedgrass.data.account import Account
from fedgrass.data.arrays import Indices
from fedgrass.data.cells import NumberFormat
from fedgrass.data.columns import Layout, Wanted
from fedgrass.data.files import in_folder
from fedgrass.data.labels import LabelError
from fedgrass.data.rows import Block, Judge
from fedgrass.data.several import labels_of
from fedgrass.data.texts import TextValues, laid_out, one_column
from fedgrass.data.values import Values
from fedgrass.data.words import Words
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import Batch
from fedgrass.errors import DataError
from fedgrass.tensors import Array

Blocks = Iterator[tuple[Block, Layout]]

# A gateway has some hundred megabytes to spare, and training needs most of them.
_IN_MEMORY_BYTES = 64 << 20


class Cells(Protocol):
    """What makes rows of numbers of a table's cells."""

    def block(self, columns: Sequence[Sequence[Any]], times: Sequence[Any] | None, rows: NDArray[np.int64]) -> Block:
        """Return the rows that are fit; see `Values.block`."""
        ...


class Table:
    """Rows as examples of one model: first filled by `add`, then read. A model of texts has x in one column."""

    def __init__(self, what: str, manifest: Manifest, settings: DataSettings) -> None:
        self.account = Account(what, "rows", settings.max_bad_share)
        self.labels = labels_of(manifest)
        self._manifest = manifest
        self.settings = settings
        self._judge = Judge(manifest, settings, self.labels, self.account)
        self._rows: _Matrix | None = None
        self._matrix: Array = np.empty((0, 0), np.float32)
        self._features = self._labels_end = manifest.x.size
        self._since = time.time() - 3600 * settings.window_hours
        names = settings.columns or manifest.data.columns
        self._words = Words(manifest, what) if manifest.data.vocabulary and len(names) <= 1 else None

    def wanted(self, what: str) -> Wanted:
        """Return which of a file's columns are wanted; ``what`` begins messages."""
        manifest = one_column(self._manifest) if self._words else self._manifest
        return Wanted(what, manifest, self.settings, self.labels, is_text=self._words is not None)

    def cells(self, what: str, numbers: NumberFormat, layout: Layout) -> Cells:
        """Return what reads a file's cells, by the layout of `wanted`."""
        if self._words:
            skips = self.settings.missing == "skip"
            return TextValues(
                self._words, what, numbers, layout, self.labels, self.account, since=self._since, skips_blank=skips
            )
        return Values(what, numbers, layout, self.labels, self.account, since=self._since)

    def add(self, block: Block, layout: Layout) -> None:
        """Keep the rows that are fit.

        Raises
        ------
        DataError
            As `Judge.passed`, or if there are more than ``maxBytes``.
        """
        layout = laid_out(layout, self._words.length) if self._words else layout
        rows = self._judge.passed(block, layout)
        self._labels_end = self._features + len(layout.labels)
        if self._rows is None:
            self._rows = _Matrix(rows.shape[1], self.settings.window_rows)
        if rows.shape[1] != self._rows.columns:
            raise DataError(
                f"{self.account.what}: {rows.shape[1]} columns, the files before it have {self._rows.columns}"
            )
        self._rows.add(rows)
        # After each block, so that the disk never holds more than one block too many.
        if self._rows.nbytes > self.settings.max_bytes:
            raise DataError(f"{self.account.what}: more than {self.settings.max_bytes} bytes as float32 (maxBytes)")

    def finished(self) -> Table:
        """Return the table, for reading; raises `DataError` if too many rows are bad."""
        self.account.judge()
        if self._rows is not None:
            self._matrix = self._rows.finished()
        return self

    def __len__(self) -> int:
        return len(self._matrix)

    def read(self, indices: Indices) -> Batch:
        """Return these rows; see `fedgrass.data.arrays.Source`."""
        rows = self._matrix.take(indices, axis=0)
        x = rows[:, : self._features].reshape(-1, *self._manifest.x.shape).astype(self._manifest.x.dtype)
        weights = rows[:, -1] if rows.shape[1] > self._labels_end else None
        if self._labels_end == self._features:
            return Batch(x, x.astype(self._manifest.y.dtype), weights)
        return Batch(x, self.labels.y(rows[:, self._features : self._labels_end]), weights)


def read_all(table: Table, path: Path, suffixes: Sequence[str], blocks: Callable[[Path], Blocks]) -> Table:
    """Fill a table from a file, or from all with these suffixes in a folder, the newest last.

    In a folder a file that cannot be read, or that has not the columns, is left out, up to the settings' share of
    them.

    Parameters
    ----------
    table
        The table to fill.
    path
        The file, or the folder.
    suffixes
        Endings of the files that count in a folder.
    blocks
        Yields a file's blocks of rows.

    Returns
    -------
    Table
        The table.

    Raises
    ------
    DataError
        If the file is bad, or too many are.
    """
    if not path.is_dir():
        for block, layout in blocks(path):
            table.add(block, layout)
        return table.finished()
    # Files are accounted for like rows: one that a rotation has broken must not stop all training.
    files = Account(table.account.what, "files", table.settings.max_bad_share)
    for file in in_folder(path, suffixes):
        found = blocks(file)
        if (first := _first(found, files)) is not None:
            for block, layout in chain([first], found):
                table.add(block, layout)
    files.judge()
    table.account.includes(files)
    return table.finished()


def _first(blocks: Blocks, files: Account) -> tuple[Block, Layout] | None:
    """Return a file's first rows, if it has any; what is wrong with it shows there."""
    try:
        first = next(blocks, None)
    # Never left out: with a class that the bundle lacks, the whole data set would be labelled wrongly.
    except LabelError:
        raise
    except DataError as error:
        files.leaves_out(str(error))
        return None
    files.good += 1
    return first


class _Matrix:
    """Rows that are collected in memory while they are few, and in a temporary file from then on.

    Parameters
    ----------
    newest
        How many of the last rows to keep; 0 is all.
    """

    def __init__(self, columns: int, newest: int) -> None:
        self.columns = columns
        self._newest = newest
        self._blocks: deque[Array] = deque()
        self._file: IO[bytes] | None = None
        self.nbytes = 0

    def add(self, rows: Array) -> None:
        self.nbytes += rows.nbytes
        self._blocks.append(rows)
        # With a window everything stays in memory: it is as large as the window and one block at most.
        if self._newest:
            self._forget()
        elif self.nbytes > _IN_MEMORY_BYTES:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its mapping
            self._file.writelines(block.tobytes() for block in self._blocks)
            self._blocks.clear()

    def _forget(self) -> None:
        held = self.nbytes // (4 * self.columns)
        while self._blocks and held - len(self._blocks[0]) >= self._newest:
            old = self._blocks.popleft()
            held -= len(old)
            self.nbytes -= old.nbytes

    def finished(self) -> Array:
        if self._file is None:
            rows = np.concatenate([np.empty((0, self.columns), np.float32), *self._blocks])
            return rows[-self._newest :] if self._newest else rows
        self._file.flush()
        # Pages that are mapped from a file are given back under pressure; the heap is not.
        return np.memmap(self._file, np.float32, "r", shape=(self.nbytes // (4 * self.columns), self.columns))
