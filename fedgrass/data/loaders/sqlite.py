"""The sqlite loader: a table, a view or a SELECT of an SQLite database, which is opened for reading only.

All of it is in memory, from 64 MB on a batch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.cells import number_format
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.tables import Blocks, Table, read_all
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError

_ROWS = 4096
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
# For a writer's lock: an application that writes in transactions holds it for moments.
_WAIT_SECONDS = 30.0


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Read the rows; with ``windowRows`` those that the table's or the query's order has last."""
    path = needed_path(settings)
    table = Table(f"data {path}", manifest, settings)
    return read_all(table, path, _SUFFIXES, lambda file: _blocks(file, table))


def _blocks(path: Path, table: Table) -> Blocks:
    what = f"data {path}"
    if not path.exists():
        raise DataError(f"{what}: cannot be read (No such file or directory)")
    try:
        # mode=ro, so that a wrong path makes no empty database. Read-only also keeps a query from changing the
        # application's data.
        database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
        # A cell that is not UTF-8 must make one row bad, not the query fail.
        database.text_factory = lambda content: content.decode("utf-8", "replace")
        try:
            yield from _read(database, what, table)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise DataError(f"{what}: cannot be read as an SQLite database ({error})") from error


def _read(database: sqlite3.Connection, what: str, table: Table) -> Blocks:
    settings = table.settings
    database.execute("PRAGMA query_only = ON")
    query = settings.query or f"SELECT * FROM {_quoted(_table(database, what, settings))}"  # noqa: S608 - quoted, and known
    rows = database.execute(query)
    if rows.description is None:
        raise DataError(f"{what}: query is no SELECT")
    layout = table.wanted(what).lay_out([column[0] for column in rows.description], named=True)
    cells = table.cells(what, number_format(settings), layout)
    for first, chunk in _chunks(rows):
        columns = [[row[column] for row in chunk] for column in layout.needed]
        times = [row[layout.time] for row in chunk] if layout.time is not None else None
        yield cells.block(columns, times, np.arange(first, first + len(chunk))), layout


def _chunks(rows: sqlite3.Cursor) -> Iterator[tuple[int, list[tuple[object, ...]]]]:
    first = 1
    while chunk := rows.fetchmany(_ROWS):
        yield first, chunk
        first += len(chunk)


def _table(database: sqlite3.Connection, what: str, settings: DataSettings) -> str:
    names = [
        str(name)
        for (name,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    ]
    if not settings.table and len(names) == 1:
        return names[0]
    if settings.table not in names:
        raise DataError(
            f"{what}: {f'has no table {settings.table!r}' if settings.table else f'has {len(names)} tables'}; name one of "
            f"{', '.join(names[:20]) or 'none'} (table), or give a query"
        )
    return settings.table


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


loader = FileLoader(load, _SUFFIXES)
