"""The csv loader: a CSV file, or all those in a folder, the newest last; see `fedgrass.data.csv_file.CsvFile`.

All of it is in memory, from 64 MB on a batch.
"""

from __future__ import annotations

import time
from pathlib import Path

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.columns import Wanted
from fedgrass.data.csv_file import CsvFile
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.tables import Blocks, Table, read_all
from fedgrass.data_settings import DataSettings

_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Read the rows."""
    path = needed_path(settings)
    table = Table(f"data {path}", manifest, settings)
    since = time.time() - 3600 * settings.window_hours

    def blocks(file: Path) -> Blocks:
        wanted = Wanted(f"data {file}", manifest, settings, table.labels)
        return CsvFile(file, settings, wanted, table.labels, table.account, since=since).blocks()

    return read_all(table, path, _SUFFIXES, blocks)


loader = FileLoader(load, _SUFFIXES)
