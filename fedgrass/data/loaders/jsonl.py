"""The jsonl loader: a file of JSON lines, or all those in a folder, the newest last: on each line an object of named values.

A list counts as columns ``NAME_0``, ``NAME_1``, …, an object within the object as ``NAME.KEY``. All of it is in memory, from
64 MB on a batch.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.cells import number_format
from fedgrass.data.columns import Wanted
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.records import MAX_LINE
from fedgrass.data.tables import Blocks, Table, read_all
from fedgrass.data.text import open_text, told_as_data
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError

_ROWS = 4096
_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

Rows = list[tuple[int, dict[str, Any]]]


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Read the lines."""
    path = needed_path(settings)
    table = Table(f"data {path}", manifest, settings)
    return read_all(table, path, _SUFFIXES, lambda file: _blocks(file, table))


def _blocks(path: Path, table: Table) -> Blocks:
    what = f"data {path}"
    with told_as_data(what):
        stream, _ = open_text(path, table.settings.encoding, max_bytes=table.settings.max_bytes)
        with stream:
            yield from _read(stream, what, table)


def _read(stream: io.TextIOWrapper, what: str, table: Table) -> Blocks:
    chunks = _chunks(stream, what, table)
    first = next(chunks, [])
    # A key may be missing on a line: then its value is. Those of the first lines are the columns.
    names = list(dict.fromkeys(name for _, row in first for name in row))
    if not names:
        return
    wanted = table.wanted(what)
    _require_names(what, wanted, names, table.settings)
    layout = wanted.lay_out(names, named=True)
    cells = table.cells(what, number_format(table.settings), layout)
    for chunk in chain([first], chunks):
        columns = [[row.get(layout.names[column]) for _, row in chunk] for column in layout.needed]
        times = None if layout.time is None else [row.get(layout.names[layout.time]) for _, row in chunk]
        yield cells.block(columns, times, np.array([line for line, _ in chunk], np.int64)), layout


def _require_names(what: str, wanted: Wanted, names: list[str], settings: DataSettings) -> None:
    """Refuse to take values by their place: programs write an object's keys in any order."""
    others = {*names} - {*wanted.y(names), settings.weight, settings.time}
    stems = {re.sub(r"_\d+$", "", name) for name in others}  # of a list
    if not wanted.x and len(stems) > 1:
        raise DataError(
            f"{what}: an object's values have no order; name those of x and y among {', '.join(sorted(names)[:20])} (columns and "
            "label in the device's configuration, or in the bundle)"
        )


def _chunks(stream: io.TextIOWrapper, what: str, table: Table) -> Iterator[Rows]:
    rows: Rows = []
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE), ""), start=1):
        if len(line) >= MAX_LINE:
            raise DataError(f"{what}: a line of more than {MAX_LINE} characters; is this a file of JSON lines?")
        if not line.strip(" \t\r\n\0\ufeff"):
            continue
        found = _object(line)
        if isinstance(found, dict):
            rows.append((number, _flat(found)))
        elif not line.endswith("\n"):
            # An application appends to the file while it is read: its last line is nobody's fault.
            table.account.says(f"the last line of {Path(what).name} is cut, as if being written, and left out")
        else:
            table.account.leaves_out(f"{what}: row {number}: {found}")
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _object(line: str) -> dict[str, Any] | str:
    """Return a line's object, or what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = (
            f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]
        )
        return f"is no JSON object ({why}); each line has to hold a whole one"
    if isinstance(found, dict):
        return found
    return f'is a JSON {_KINDS.get(type(found), "value")}, expected an object, such as {{"heat": 1.5, "state": "ok"}}'


_KINDS = {list: "array", str: "text", int: "number", float: "number"}


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    if not any(isinstance(value, (list, dict)) for value in found.values()):
        return found
    flat: dict[str, Any] = {}
    waiting = [*reversed(found.items())]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += reversed([(f"{name}.{key}", part) for key, part in value.items()])
        elif isinstance(value, list):
            waiting += reversed([(f"{name}_{at}", part) for at, part in enumerate(value)])
        else:
            flat[name] = value
    return flat


loader = FileLoader(load, _SUFFIXES)
