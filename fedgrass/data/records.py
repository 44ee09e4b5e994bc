"""A CSV file's records with the numbers of their lines, as quoted cells may go on over several."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from fedgrass.data.dialect import Dialect

# Characters of a line: beyond it the file is no CSV, or a quote was never closed.
MAX_LINE = 1 << 22


@dataclass(frozen=True)
class Record:
    """One record, or a comment line.

    ``line`` is where it begins, ``used`` how many of the given lines are behind it then.
    """

    cells: list[str]
    line: int
    lines: int
    used: int
    comment: str = ""
    problem: str = ""
    is_cut: bool = False


def records(lines: list[str], stream: io.TextIOWrapper, dialect: Dialect, *, first: int) -> Iterator[Record]:
    """Yield the records of some lines, and read on where the last of them does; what is read is added to the lines.

    Parameters
    ----------
    first
        The number of the first line.
    """
    used, total, mark = 0, len(lines), dialect.comment

    def feed() -> Iterator[str]:
        nonlocal used
        while used < len(lines) or _more(lines, stream):
            used += 1
            yield lines[used - 1]

    reader = dialect.reader(feed())
    # Records end where the reader has taken lines to; one that goes on past the block has it read more.
    while used < total:
        before, problem = used, ""
        if mark and lines[before].startswith(mark):
            used += 1
            yield Record([], first + before, 1, used, comment=lines[before])
            continue
        try:
            cells = next(reader, [])
        except csv.Error as error:
            # The reader goes on with the next line, so one broken record costs one row.
            cells, problem = [""], f"is no CSV ({error})"
        # The last line of a file that is being written has no end yet.
        is_cut = used == before + 1 and not lines[before].endswith(("\n", "\r"))
        yield Record(cells, first + before, used - before, used, problem=problem, is_cut=is_cut)


def _more(lines: list[str], stream: io.TextIOWrapper) -> bool:
    line = stream.readline(MAX_LINE)
    if line:
        lines.append(line)
    return bool(line)
