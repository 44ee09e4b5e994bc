"""The csv loader: a CSV file, or all those in a folder, the newest last; see `fedgrass.data.csv_file.CsvFile`.

All of it is in memory, from 64 MB on a batch.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.csv_file import CsvFile
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.tables import Table, read_all
from fedgrass.data_settings import DataSettings

_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Read the rows."""
    path = needed_path(settings)
    table = Table(f"data {path}", manifest, settings)
    return read_all(table, path, _SUFFIXES, lambda file: CsvFile(file, table).blocks())


loader = FileLoader(load, _SUFFIXES)
