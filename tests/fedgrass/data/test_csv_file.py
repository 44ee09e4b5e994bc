"""CSV files in any dialect, against Python's own reader and numbers written by hand."""

from __future__ import annotations

import csv
import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.messy import NAMED, NAMED_WORDS, REGRESSION, model
from fedgrass.bundle import DataDescription, Manifest
from fedgrass.data import DataSettings, csv_file
from fedgrass.data.cells import NumberFormat
from fedgrass.data.loaders import load, open_source
from fedgrass.data.tables import Table
from fedgrass.data.text import open_text
from fedgrass.errors import DataError

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda value: f"{value:.6g}")
NOTES = st.text(st.characters(exclude_characters="\r"), max_size=8)  # a carriage return, Python's writer does not quote


def opened(path: Path, manifest: Manifest, **options: Any) -> Table:
    source = open_source(DataSettings(loader="csv", path=str(path), **options), manifest)
    assert isinstance(source, Table)
    return source


def outcome(path: Path, manifest: Manifest, **options: Any) -> tuple[Any, ...]:
    """What is read and said of a file; or why it is refused."""
    try:
        table = opened(path, manifest, **options)
    except DataError as error:
        return (str(error),)
    batch = table.read(np.arange(len(table)))
    account = table.account
    return batch.x.tolist(), batch.y.tolist(), account.bad, account.skipped, account.filled, account.reasons


@IN_FOLDER
@given(
    rows=st.lists(
        st.tuples(NUMBERS, NUMBERS, st.sampled_from(["ok", "worn", "broken"]), NOTES),
        min_size=1,
        max_size=30,
    ),
    order=st.permutations(["a", "b", "state", "note"]),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
@example(
    rows=[("0", "0", "ok", "\\")], order=["a", "b", "state", "note"], separator=",", end="\n", quoting=csv.QUOTE_ALL,
    encoding="utf-8",
)  # fmt: skip
def test_what_pythons_writer_writes_is_read_by_name(
    tmp_path: Path, rows: list[Any], order: list[str], separator: str, end: str, quoting: Any, encoding: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, order, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writeheader()
    for a, b, state, note in rows:
        writer.writerow({"a": a, "b": b, "state": state, "note": note})
    path = tmp_path / "a.csv"
    path.write_bytes(text.getvalue().encode(encoding, "replace"))
    table = opened(path, NAMED_WORDS, separator=separator, quote='"', comment="~", decimal=".", encoding=encoding)
    batch = table.read(np.arange(len(table)))
    np.testing.assert_array_equal(batch.x, np.array([[a, b] for a, b, *_ in rows], np.float32))
    assert batch.y.tolist() == [["ok", "worn", "broken"].index(row[2]) for row in rows]


ODD = st.sampled_from(
    [
        *("", "1", "-2.5", "+3", "1e3", ".5", "5.", "nan", "NaN", "inf", "-", "NULL", "1_0", "0x1", "1e999", "cold"),
        *(
            " 7 ",
            "1.2.3",
            "true",
            "False",
            "1,5",
            '"6"',
            '"',
            "#",
            "--1",
            "1e",
            "e1",
            "٣",
            "1\x00",
            "1e39",
            "1 2",
            "1d3",
        ),
    ]
)


@IN_FOLDER
@given(
    rows=st.lists(st.lists(st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD), min_size=3, max_size=3), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    separator=st.sampled_from(",;"),
    decimal=st.sampled_from(".,"),
    missing=st.sampled_from(["refuse", "skip", "0"]),
    words=st.booleans(),
)
@example(rows=[["1", "", "0"], ["", "2", "1"]], end="\n", separator=",", decimal=".", missing="skip", words=False)
def test_both_readers_give_the_same(
    tmp_path: Path, rows: list[list[str]], end: str, separator: str, decimal: str, missing: str, words: bool
) -> None:
    path = tmp_path / "a.csv"
    lines = [separator.join(["a", "b", "state"]), *(separator.join(row) for row in rows)]
    path.write_bytes("".join(line + end for line in lines).encode())
    manifest = (
        NAMED_WORDS if words else model(loss="mean_squared_error", dtypes=("float32", "float32"), data=NAMED.data)
    )
    options = {"separator": separator, "decimal": decimal, "missing": missing, "max_bad_share": 0.9}
    with pytest.MonkeyPatch.context() as patch:
        fast = outcome(path, manifest, **options)
        patch.setattr(csv_file, "parse", lambda *_: None)
        assert outcome(path, manifest, **options) == fast


@given(
    value=st.floats(-1e12, 1e12),
    digits=st.integers(0, 6),
    marks=st.sampled_from([".", ",.", " ,", ".,", "',", "\u202f,", "_."]),
)
def test_numbers_are_read_in_the_marks_of_the_country(value: float, digits: int, marks: str) -> None:
    thousands, decimal = marks[:-1], marks[-1]
    plain = f"{value:.{digits}f}"
    written = f"{value:,.{digits}f}" if thousands else plain
    written = written.translate({ord(","): thousands, ord("."): decimal})
    assert NumberFormat(decimal, thousands).number(written) == float(plain)


@pytest.mark.parametrize("text", ["1,23,456", "1,2345", ",123", "1234,567", "1,234,", "12,34"])
def test_thousands_in_the_wrong_place_are_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        NumberFormat(".", ",").number(text)


@IN_FOLDER
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=2, max_size=300),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_text_comes_back_from_each_encoding(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("ab" + text).encode(encoding))
    stream, _ = open_text(path, "", max_bytes=10_000)
    with stream:
        assert stream.read() == "ab" + text


def test_what_is_appended_while_a_file_is_read_stays_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,2\n")
    stream, _ = open_text(path, "", max_bytes=10_000)
    with path.open("a") as file:
        file.write("3,4\n")
    with stream:
        assert stream.read() == "1,2\n"


@pytest.mark.parametrize("encoding", ["", "utf-8"])
def test_a_packed_file_that_is_too_large_is_refused_not_cut(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"1,2,3,0\n" * 1000))
    settings = DataSettings(loader="csv", path=str(path), max_bytes=4000, encoding=encoding)
    with pytest.raises(DataError, match=r"unpacks to more than 4000 bytes \(maxBytes\)"):
        load(settings, model())
    # Exactly as long as the bound is not too long.
    stream, _ = open_text(path, encoding, max_bytes=8000)
    with stream:
        assert len(stream.read()) == 8000


@IN_FOLDER
@given(
    spans=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    comments=st.lists(st.integers(0, 20)),
    bad=st.integers(0, 19),
)
def test_a_row_in_a_message_is_the_line_of_the_file(
    tmp_path: Path, spans: list[int], comments: list[int], bad: int
) -> None:
    bad %= len(spans)
    lines, where = ["a,b,state,note"], 0
    for row, span in enumerate(spans):
        lines += ["# a comment, with 'quotes and \"others"] * comments.count(row)
        if row == bad:
            where = len(lines) + 1
        note = "x\n" * span
        lines += f'{"cold" if row == bad else row},1,0,"{note}"'.split("\n")
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"row {where}, column 'a': 'cold'"):
        opened(path, NAMED, max_bad_share=0, quote='"', comment="#")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_labels_are_decided_for_the_whole_file_whatever_the_blocks(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "_BLOCK", size)
    manifest = model(classes=("10", "20", "x9"), data=DataDescription(columns=("a", "b"), labels=("state",)))
    path = tmp_path / "a.csv"
    path.write_text("a,b,state\n1,1,10\n2,2,20\n3,3,x9\n4,4,10\n")
    table = opened(path, manifest)
    assert table.read(np.arange(4)).y.tolist() == [0, 1, 2, 0]
    path.write_text("a,b,state\n1,1,1\n")  # some names are numbers: then no number is an index
    with pytest.raises(DataError, match="'1' is not"):
        opened(path, manifest)


def test_a_window_keeps_the_last_rows_and_no_more_memory_than_they_take(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{i},{i},{i % 2}\n" for i in range(300_000)))
    table = opened(path, model(), window_rows=5, max_bytes=1 << 20)
    assert table.read(np.arange(5)).x[:, 0].tolist() == [299_995, 299_996, 299_997, 299_998, 299_999]
    with pytest.raises(DataError, match="maxBytes"):
        opened(path, model(), max_bytes=1 << 20)


def test_many_bad_rows_end_the_reading_early(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "x,1,1\n" * 400_000)
    with pytest.raises(DataError, match=r"row 2, column 'a': 'x' is not a number; 1\d{4} of"):
        opened(path, REGRESSION)


def test_nothing_in_a_random_file_ends_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "a.csv"
    pieces = b",&\n&\r&\"&'&1&2.5&ok&\x00&\xff&#&;& &\\&nan&\t&\xc3".split(b"&")
    for _ in range(300):
        path.write_bytes(b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(0, 60))))
        outcome(path, NAMED_WORDS, missing="skip", max_bad_share=0.9)
        outcome(path, REGRESSION, missing="0", max_bad_share=0.9)


def test_a_missing_value_is_a_number_nowhere() -> None:
    assert math.isnan(NumberFormat().number(" NaN "))
    with pytest.raises(ValueError, match="finite"):
        NumberFormat(missing={""}).number("nan")
