"""The parquet loader: a Parquet file, or all those in a folder, the newest last; read by groups of rows (extra ``parquet``).

All of it is in memory, from 64 MB on a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.cells import number_format
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.tables import Blocks, Table, read_all
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError

# Rows of a batch: Python objects of some columns for so many rows take a few megabytes.
_ROWS = 8192
_SUFFIXES = (".parquet", ".pq")


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Read the rows."""
    path = needed_path(settings)
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("data loader parquet: pyarrow is not installed; pip install 'fedgrass[parquet]'") from error
    table = Table(f"data {path}", manifest, settings)
    return read_all(table, path, _SUFFIXES, lambda file: _blocks(pyarrow, file, table))


def _blocks(pyarrow: Any, path: Path, table: Table) -> Blocks:
    what = f"data {path}"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            layout = table.wanted(what).lay_out(file.schema_arrow.names, named=True)
            cells = table.cells(what, number_format(table.settings), layout)
            chosen = sorted({*layout.needed, *(() if layout.time is None else (layout.time,))})
            places = {column: place for place, column in enumerate(chosen)}
            first = 1
            # Without threads: training has the processor that its owner allows, and this would take all of it.
            for batch in file.iter_batches(
                _ROWS, columns=[layout.names[column] for column in chosen], use_threads=False
            ):
                columns = [batch.column(places[column]).to_pylist() for column in layout.needed]
                times = None if layout.time is None else batch.column(places[layout.time]).to_pylist()
                yield cells.block(columns, times, np.arange(first, first + batch.num_rows)), layout
                first += batch.num_rows
    except OSError as error:
        raise DataError(f"{what}: cannot be read ({error.strerror or error})") from error
    except pyarrow.ArrowException as error:
        raise DataError(f"{what}: cannot be read as a Parquet file ({error})") from error


loader = FileLoader(load, _SUFFIXES)
