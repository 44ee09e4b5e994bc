"""How a CSV file is written, guessed from its first lines where the settings do not say it."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedgrass.data.cells import THOUSANDS, NumberFormat, markers, number_format
from fedgrass.data.columns import Wanted
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError

# Lines that are looked at: enough to meet the marks that numbers use, and read in a moment.
SAMPLE = 500
# In the order in which they are preferred where all else is equal.
_SEPARATORS = (",", ";", "\t", "|", " ")
_COMMENTS = ("#", "%")
_MARKED = re.compile(r"[+-]?(\d+)([.,])(\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_GROUP = re.compile(r"[+-]?([1-9]\d{0,2})([.,])(\d{3})", re.ASCII)
_DECLARED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """The marks of one file."""

    separator: str
    quote: str
    escape: str | None
    comment: str
    numbers: NumberFormat
    guessed: tuple[str, ...] = ()

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Return Python's own CSV reader of these lines."""
        return reader(lines, self.separator, self.quote, self.escape)


def reader(lines: Iterable[str], separator: str, quote: str, escape: str | None) -> Iterator[list[str]]:
    """Make Python's own CSV reader for a dialect.

    Parameters
    ----------
    lines
        The file's lines.
    separator, quote
        One character each.
    escape
        What goes before a quote within quotes; None if it is doubled instead.

    Returns
    -------
    Iterator
        Rows of cells.
    """
    return csv.reader(
        lines,
        delimiter=separator,
        quotechar=quote,
        escapechar=escape,
        doublequote=escape is None,
        # `1, "a"`: the quote must open the cell.
        skipinitialspace=True,
        strict=True,  # a quote that is never closed would swallow all rows after it
    )


def declared_separator(line: str) -> str:
    """Return the separator of Excel's own first line ``sep=;``, or nothing."""
    found = _DECLARED.fullmatch(line)
    return found[1] if found else ""


def guess(lines: Sequence[str], settings: DataSettings, wanted: Wanted, what: str, declared: str = "") -> Dialect:
    """Tell a file's dialect from its first lines.

    Parameters
    ----------
    lines
        The first lines; blank ones are passed over.
    settings
        What the owner says of the file, which is never guessed.
    wanted
        The columns that the model needs.
    what
        What the file is called in messages.
    declared
        The separator that the file itself declares.

    Returns
    -------
    Dialect
        The dialect, with what was guessed in words.

    Raises
    ------
    DataError
        If its decimal mark may be either: ``1,234`` alone is one, or a thousand.
    """
    # Order matters: each step needs what was found before it, from comments to numbers.
    lines = [line for line in lines if line.strip()][:SAMPLE]
    comment = settings.comment or _comment(lines, wanted)
    lines = [line for line in lines if not (comment and line.startswith(comment))]
    given = settings.separator or declared
    quote = settings.quote or _quote(lines, given)
    escape = _escape(lines, given, wanted, quote)
    separator = given or _separator(lines, wanted, quote, escape)
    rows = list(_rows(lines, separator, quote, escape))
    # In texts a comma between digits means nothing.
    numbers = number_format(settings) if wanted.is_text else _numbers(_cells(rows, wanted), settings, what)
    guessed = tuple(
        f"{name} {value!r} guessed"
        for name, value, said, usual in (
            ("separator", separator, settings.separator, ","),
            ("quote", quote, settings.quote, '"'),
            ("comment", comment, settings.comment, ""),
            ("decimal mark", numbers.decimal, settings.decimal, "."),
            ("thousands separator", numbers.thousands, settings.thousands, ""),
        )
        if not said and value != usual
    )
    return Dialect(separator, quote, escape, comment, numbers, guessed)


def _comment(lines: Sequence[str], wanted: Wanted) -> str:
    # A text may begin with a hash tag.
    marks = () if wanted.is_text else _COMMENTS
    return next((mark for mark in marks if any(line.startswith(mark) for line in lines)), "")


def _escape(lines: Sequence[str], separator: str, wanted: Wanted, quote: str) -> str | None:
    """Return the backslash if it escapes quotes: a cell may also end in one, so the reading with more even rows wins."""
    if not any('\\"' in line for line in lines):
        return None

    def even_rows(escape: str | None) -> int:
        rows = _rows(lines, separator or _separator(lines, wanted, quote, escape), quote, escape)
        return max(Counter(map(len, rows)).values(), default=0)

    return "\\" if even_rows("\\") > even_rows(None) else None


def _rows(lines: Sequence[str], separator: str, quote: str, escape: str | None) -> Iterator[list[str]]:
    """Yield the rows of a sample, whose last one may be cut."""
    with contextlib.suppress(csv.Error):
        yield from reader(iter(lines), separator, quote, escape)


def _cells(rows: Sequence[list[str]], wanted: Wanted) -> list[str]:
    """Return the cells that are numbers of the model, as far as a header says which."""
    header = next((row for row in rows if wanted.x and wanted.are_all_in(row)), [])
    chosen = [i for i, name in enumerate(header) if name.strip() in wanted.x]
    return [cell.strip() for row in rows for i, cell in enumerate(row) if not chosen or i in chosen]


def _quote(lines: Sequence[str], separator: str) -> str:
    text = "".join(lines)
    mark = re.escape(separator) if separator else r"[,;\t|]"
    quoted = re.findall(rf"(?:^|{mark})'[^'\n]*'(?={mark}|\r?$)", text, re.MULTILINE)
    return "'" if '"' not in text and len(quoted) >= 2 else '"'


def _separator(lines: Sequence[str], wanted: Wanted, quote: str, escape: str | None) -> str:
    def score(separator: str) -> tuple[bool, bool, float, int]:
        rows = [row for row in _rows(lines, separator, quote, escape) if row]
        width, often = Counter(len(row) for row in rows).most_common(1)[0] if rows else (0, 0)
        return (
            # A header with the model's own names is the surest sign; then the number of columns; then how even the
            # rows are.
            any(wanted.are_all_in(row) for row in rows[:SAMPLE]),
            width > 1 and {width, width - (rows[0][-1:] == [""])} & set(wanted.numbers_of_columns()) != set(),
            often / len(rows) if width > 1 else 0.0,
            -_SEPARATORS.index(separator),
        )

    found = [separator for separator in _SEPARATORS if any(separator in line for line in lines)]
    return max(found, key=score, default=",")


def _numbers(cells: Sequence[str], settings: DataSettings, what: str) -> NumberFormat:
    decimal, thousands = settings.decimal, settings.thousands or _thousands(cells, settings.decimal)
    if not decimal:
        plain = [cell.replace(thousands, "") for cell in cells] if thousands else cells
        # If one of the two marks thousands, the other marks fractions.
        decimal = {",": ".", ".": ","}.get(thousands) or _decimal(plain, what)
    other = {",": ".", ".": ","}.get(decimal, "")
    if not thousands and other and any(found[2] == other for found in map(_GROUP.fullmatch, cells) if found):
        thousands = other
    if decimal == thousands:
        raise DataError(f"{what}: {decimal!r} cannot be both decimal mark and thousands separator")
    return NumberFormat(decimal, thousands, markers(settings))


def _thousands(cells: Sequence[str], decimal: str) -> str:
    """Return a mark that cannot be a decimal one: it is there twice, before one, or is none of the two."""
    for mark in THOUSANDS:
        m, other = re.escape(mark), {",": r"\.", ".": ","}.get(mark, "[.,]")
        once = rf"|[+-]?\d{{1,3}}{m}\d{{3}}" if mark not in ".," else ""
        sure = re.compile(
            rf"[+-]?\d{{1,3}}(?:{m}\d{{3}}){{2,}}(?:{other}\d*)?|[+-]?\d{{1,3}}{m}\d{{3}}{other}\d*{once}", re.ASCII
        )
        if mark != decimal and any(mark in cell and sure.fullmatch(cell) for cell in cells):
            return mark
    return ""


def _decimal(cells: Sequence[str], what: str) -> str:
    """Return the mark before fractions; ``1,234`` alone does not say which it is."""
    # `1,234` is left out: it fits both readings.
    marks = {found[2] for found in map(_MARKED.fullmatch, cells) if found and not _GROUP.fullmatch(found[0])}
    if len(marks) == 2:
        raise DataError(
            f"{what}: some numbers have a decimal point and some a comma; say decimal in the device's configuration"
        )
    unclear = next((cell for cell in cells if "," in cell and _GROUP.fullmatch(cell)), "")
    if unclear and not marks:
        raise DataError(
            f"{what}: {unclear!r} may be a decimal comma or a thousands separator; say decimal or thousands in the device's "
            "configuration"
        )
    return marks.pop() if marks else "."
