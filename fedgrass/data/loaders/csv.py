"""The csv loader: a CSV file, see `fedgrass.data.tables.Table`."""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.loaders import needed_path
from fedgrass.data.tables import Table
from fedgrass.data_settings import DataSettings


def load(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the table."""
    return Table(needed_path(settings), manifest, label=settings.label, max_bytes=settings.max_bytes)


loader = load
