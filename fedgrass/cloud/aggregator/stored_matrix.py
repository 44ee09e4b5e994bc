"""Updates as a matrix on the scratch disk, for strategies that need to see all of them at once."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats

_TILE_BYTES = 8 << 20  # a tile is in work in each of a few threads


class StoredMatrix:
    """Rows of float32 in one file, read a tile of all rows at a time; a context manager.

    Disk: 4 bytes per parameter and update. Memory: 8 MiB a thread, whatever their number and size.
    """

    def __init__(self, base: Bundle, layout: Layout, scratch: Path | None = None) -> None:
        self.base = base
        self._layout = layout
        self._scratch = scratch
        self._places: dict[str, int] = {}
        self._lock = Lock()
        self._rows: list[tuple[int, UpdateMetadata, float]] = []

    def write(self, key: str, values: Floats, start: int = 0) -> None:
        """Write values of an update from a place in its vector on; threads may do so at the same time.

        Parameters
        ----------
        key
            The update's key; its first use gives the update a row.
        values
            float32 [n].
        start
            Index of the first of them in the update's vector.
        """
        # Only the row number needs the lock: rows are disjoint, and pwrite takes its own position.
        with self._lock:
            place = self._places.setdefault(key, len(self._places))
        write_at(self._file, values, (place * self._layout.size + start) * 4)

    def choose(self, rows: Sequence[tuple[str, UpdateMetadata, float]]) -> None:
        """Make a matrix of these updates: key, facts, and what the values are multiplied by."""
        self._rows = [(self._places[key], facts, factor) for key, facts, factor in rows]

    @property
    def facts(self) -> Sequence[UpdateMetadata]:
        """What is known of each row."""
        return [facts for _, facts, _ in self._rows]

    def tiles(self) -> Sequence[slice]:
        """Return the columns' division."""
        # Narrower tiles with more rows, so that a tile stays at 8 MiB however many updates there are.
        width = max(1, _TILE_BYTES // (4 * max(1, len(self._rows))))
        return [slice(start, min(start + width, self._layout.size)) for start in range(0, self._layout.size, width)]

    def read(self, columns: slice, chosen: Sequence[int] | None = None) -> Floats:
        """Return a new array [rows, columns] of all rows or the chosen ones; threads may call it at the same time."""
        rows = self._rows if chosen is None else [self._rows[row] for row in chosen]
        values = np.empty((len(rows), columns.stop - columns.start), np.float32)
        # One preadv for each row: rows of refused updates lie between, so the chosen ones are not contiguous.
        for row, (place, _, factor) in zip(values, rows, strict=True):
            read_at(self._file, row, (place * self._layout.size + columns.start) * 4)
            if factor != 1.0:
                np.multiply(row, np.float32(factor), out=row)
        return values

    def __enter__(self) -> StoredMatrix:
        # Unnamed: the system takes the space back even if the job is killed.
        self._file = tempfile.TemporaryFile(dir=self._scratch, buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_at(file: BinaryIO, values: Array, position: int) -> None:
    """Write an array's bytes to a place in an unbuffered file; threads may do so at the same time.

    Parameters
    ----------
    file
        Opened for writing, unbuffered.
    values
        Any dtype, contiguous.
    position
        Byte offset of the first value.
    """
    rest = values.view(np.uint8).data
    # A write may be cut short: Linux moves at most some 2 GiB at once, and a full disk raises at the next call.
    while rest:
        written = os.pwrite(file.fileno(), rest, position)
        rest, position = rest[written:], position + written


def read_at(file: BinaryIO, values: Array, position: int) -> None:
    """Fill an array from a place in an unbuffered file; threads may do so at the same time.

    Parameters
    ----------
    file
        Opened for reading, unbuffered.
    values
        Any dtype, contiguous; overwritten.
    position
        Byte offset of the first value.

    Raises
    ------
    OSError
        If the file ends before.
    """
    rest = values.view(np.uint8).data
    while rest:
        count = os.preadv(file.fileno(), [rest], position)
        if not count:
            raise OSError(errno.EIO, "a scratch file is shorter than what was written to it")
        rest, position = rest[count:], position + count
