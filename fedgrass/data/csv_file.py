"""A CSV file's rows as blocks of numbers: by NumPy's reader where a block is plain, by Python's where it is not.

Both give the same for what both read (`tests/fedgrass/data/test_csv_file.py`); the first is several times as fast.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from fedgrass.data.columns import Layout
from fedgrass.data.dialect import declared_separator, guess
from fedgrass.data.header import find
from fedgrass.data.plain_rows import parse
from fedgrass.data.records import MAX_LINE, records
from fedgrass.data.rows import Block
from fedgrass.data.tables import Table
from fedgrass.data.text import open_text, told_as_data
from fedgrass.data.values import Values
from fedgrass.errors import DataError

# Characters that are read at a time: bounds the memory, and is long enough for NumPy's reader to pay.
_BLOCK = 1 << 20


class CsvFile:
    """One file for a table, read once, up to the size that it had when it was opened."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path = path
        self._what = f"data {path}"
        self._settings = table.settings
        self._table = table
        self._wanted = table.wanted(self._what)
        self._account = table.account
        self._line = 1

    def blocks(self) -> Iterator[tuple[Block, Layout]]:
        """Yield the rows.

        Raises
        ------
        DataError
            Naming the file, and the row by the number of the line in which it begins.
        """
        with told_as_data(self._what, "CSV text"):
            stream, encoding = open_text(self._path, self._settings.encoding, max_bytes=self._settings.max_bytes)
            if not self._settings.encoding and encoding not in ("utf-8", "utf-8-sig"):
                self._account.says(f"encoding {encoding} guessed")
            with stream:
                yield from self._read(stream)

    def _read(self, stream: io.TextIOWrapper) -> Iterator[tuple[Block, Layout]]:
        # Counted as well, so that messages give the line number that an editor shows.
        for _ in range(self._settings.skip_lines):
            self._line += bool(stream.readline(MAX_LINE))
        lines = self._lines(stream)
        if lines and (declared := declared_separator(lines[0])):
            lines, self._line = lines[1:], self._line + 1
        else:
            declared = ""
        self._dialect = guess(lines, self._settings, self._wanted, self._what, declared)
        for said in self._dialect.guessed:
            self._account.says(said)
        rest = self._after_header(lines, stream)
        for some in chain([rest], iter(partial(self._lines, stream), [])):
            # The fast reader first; whatever is odd about a block sends just that block to the careful one.
            block = self._plain(some) or self._any(some, stream)
            if len(block):
                yield block, self._layout

    def _lines(self, stream: io.TextIOWrapper) -> list[str]:
        lines = stream.readlines(_BLOCK)
        # A binary file may have no line end for gigabytes.
        if any(len(line) > MAX_LINE for line in lines):
            raise DataError(f"{self._what}: a line of more than {MAX_LINE} characters; is this a CSV file?")
        return lines

    def _after_header(self, lines: list[str], stream: io.TextIOWrapper) -> list[str]:
        found = records(lines, stream, self._dialect, first=self._line)
        header = find(found, self._wanted, self._dialect, self._table.labels, header=self._settings.header)
        row = header.cells
        if row and row[-1].strip() == "" and len(row) - 1 in self._wanted.numbers_of_columns() and not self._wanted.x:
            row = row[:-1]  # each line ends in a separator
        self._width = len(row)
        self._header = row if header.named else None
        self._layout = self._wanted.lay_out(row, named=header.named)
        self._cells = self._table.cells(self._what, self._dialect.numbers, self._layout)
        self._line += header.used
        return lines[header.used :]

    def _plain(self, lines: list[str]) -> Block | None:
        """Read lines that are one plain row each; None if they are not."""
        # Times are text, which NumPy's reader does not take.
        if self._layout.time is not None or not isinstance(self._cells, Values):
            return None
        mark, needed = self._dialect.separator, self._layout.needed
        texts = self._cells.texts if self._cells.reads_texts else None
        values = parse(lines, self._dialect, self._layout, self._width, texts)
        if values is None:
            return None
        # Plain lines are one row each, so numbers of lines and of rows agree.
        numbers = np.arange(self._line, self._line + len(lines))
        self._line += len(lines)
        return Block(values, numbers, lambda row, column: lines[row].split(mark)[needed[column]].strip())

    def _any(self, lines: list[str], stream: io.TextIOWrapper) -> Block:
        """Read lines that are CSV, and account for those that are not."""
        rows, numbers, used = [], [], 0
        for record in records(lines, stream, self._dialect, first=self._line):
            used = record.used
            if record.comment or not ("".join(record.cells).strip() or record.problem):
                continue  # a blank line, or what a spreadsheet makes of one
            cells = self._trimmed(record.cells)
            # Files that were put one after another have it again.
            if cells == self._header:
                self._account.says("a header within the file left out")
                continue
            if len(cells) == self._width and not record.problem:
                rows.append(cells)
                numbers.append(record.line)
            # An application appends to the file while it is read: its last row is nobody's fault.
            elif record.is_cut:
                self._account.says(f"the last row of {self._path.name} is cut, as if being written, and left out")
            else:
                reason = record.problem or f"{len(cells)} columns, expected {self._width}"
                self._account.leaves_out(f"{self._what}: row {record.line}: {reason}", record.lines)
        self._line += used
        columns = [[row[column] for row in rows] for column in self._layout.needed]
        times = None if self._layout.time is None else [row[self._layout.time] for row in rows]
        return self._cells.block(columns, times, np.array(numbers, np.int64))

    def _trimmed(self, cells: list[str]) -> list[str]:
        return cells[:-1] if len(cells) == self._width + 1 and cells[-1].strip() == "" else cells
