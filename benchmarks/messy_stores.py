"""Databases, folders that grow, and arrays as they lie on devices; see `benchmarks.messy`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.messy import AUTOENCODER, BINARY, BYTES, GOOD, NAMED, NAMED_WORDS, NUMBERS, WORDS, Case, X, Y


def ago(hours: float) -> str:
    """Return a time in the past as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * hours))


def _database(rows: str, *more: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        database = sqlite3.connect(path)
        database.executescript(rows + ";" + ";".join(more))
        database.commit()
        database.close()

    return write


_TABLE = "CREATE TABLE r (id INTEGER PRIMARY KEY, t TEXT, a REAL, b INTEGER, state)"


def _folder(**files: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        # A keyword takes no point: a_csv is a.csv.
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("_", ".")).write_text(content)

    return write


def _arrays(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


STORES = [
    Case(
        "SQLite",
        _database(_TABLE, "INSERT INTO r VALUES (1,'',1,10,0),(2,'',2.5,20,1),(3,'',3,30,2)"),
        X,
        Y,
        model=NAMED,
        loader="sqlite",
        suffix=".db",
    ),
    Case(
        "SQLite, words and NULL",
        _database(_TABLE, "INSERT INTO r VALUES (1,'',1,10,'ok'),(2,'',NULL,20,'worn'),(3,'',3,30,'broken')"),
        [X[0], X[2]],
        [0, 2],
        model=NAMED_WORDS,
        loader="sqlite",
        suffix=".db",
        settings={"missing": "skip"},
        trouble="1 rows",
    ),
    Case(
        "SQLite, two tables",
        _database(_TABLE, "CREATE TABLE s (a)"),
        refused="has 2 tables",
        model=NAMED,
        loader="sqlite",
        suffix=".db",
    ),
    Case(
        "SQLite, a query and its last row",
        _database(_TABLE, "INSERT INTO r VALUES (1,'',1,10,0),(2,'',2.5,20,1),(3,'',3,30,2)"),
        X[2:],
        Y[2:],
        model=NAMED,
        loader="sqlite",
        suffix=".db",
        settings={"query": "SELECT a, b, state FROM r ORDER BY id", "window_rows": 1},
    ),
    Case(
        "SQLite, a query that writes",
        _database(_TABLE),
        refused="SQLite",
        model=NAMED,
        loader="sqlite",
        suffix=".db",
        settings={"query": "DELETE FROM r"},
    ),
    Case("SQLite, not one", GOOD, refused="as an SQLite database", loader="sqlite", suffix=".db"),
    Case(
        "a folder of CSV files",
        _folder(a_csv=GOOD, b_CSV="a;b;state\n9,5;1;0\n", _DS_Store="x", c_csv="", notes_md="x"),
        [*X, [9.5, 1]],
        [*Y, 0],
        suffix="",
    ),
    Case(
        "a folder, one file of another kind",
        _folder(a_csv=GOOD, b_csv="time\n1\n"),
        X,
        Y,
        suffix="",
        settings={"max_bad_share": 0.5},
        trouble="1 of 2 files left out",
    ),
    Case("the last two rows", GOOD, X[1:], Y[1:], settings={"window_rows": 2}),
    Case(
        "the last day's rows",
        # ISO 8601 and Unix seconds in one column.
        lambda path: path.write_text(f"t,a,b,state\n{ago(48)},1,10,0\n{ago(2)},2.5,20,1\n{time.time():.0f},3,30,2\n"),
        X[1:],
        Y[1:],
        model=NAMED,
        settings={"window_hours": 24, "time": "t"},
    ),
    Case(
        "a window, and no time column",
        GOOD,
        refused="no time column 't'",
        model=NAMED,
        settings={"window_hours": 24, "time": "t"},
    ),
    Case(
        "arrays with words",
        _arrays(x=np.array(X, np.float32), y=np.array(["ok", "worn", "broken"])),
        X,
        Y,
        model=WORDS,
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with words, no class names",
        _arrays(x=np.array(X, np.float32), y=np.array(["ok"] * 3)),
        refused="class_names",
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with 1.0 and 2.0",
        _arrays(x=np.array(X, np.float32), y=np.array([0.0, 1.0, 2.0])),
        X,
        Y,
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with one-hot rows for a class's number",
        _arrays(x=np.array(X, np.float32), y=np.eye(3)[[2, 0, 1]]),
        X,
        [2, 0, 1],
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with a sigmoid's whole labels, flat",
        _arrays(x=np.array(X, np.float32), y=np.array([1, 0, 1])),
        X,
        [[1], [0], [1]],
        model=BINARY,
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with classes that are numbers, in a column",
        _arrays(x=np.array(X, np.float32), y=np.array([[30], [20], [10]])),
        X,
        [2, 1, 0],
        model=NUMBERS,
        loader="npz",
        suffix=".npz",
    ),
    Case(
        "arrays with a number that is no class",
        _arrays(x=np.array(X, np.float32), y=np.array([30, 25, 10])),
        refused="y of example 1: label 25 is not one of the classes",
        model=NUMBERS,
        loader="npz",
        suffix=".npz",
    ),
    Case("arrays of x alone", _arrays(x=np.array(X, np.float32)), X, X, model=AUTOENCODER, loader="npz", suffix=".npz"),
    Case(
        "arrays beyond the dtype",
        _arrays(x=np.array([[1, 300]]), y=np.array([0])),
        refused="beyond uint8",
        model=BYTES,
        loader="npz",
        suffix=".npz",
    ),
]
