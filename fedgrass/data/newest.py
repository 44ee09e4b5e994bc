"""The newest of a device's examples: what its model sees now, with labels or without."""

from __future__ import annotations

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Part
from fedgrass.data.loaders import open_source
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import Dataset
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.parts import LOADERS


def newest(settings: DataSettings, manifest: Manifest, rows: int, path: str = "") -> Dataset:
    """Read the newest examples, missing values of x as NaN.

    Parameters
    ----------
    settings
        Where the device's examples are.
    manifest
        Of the model whose inputs they are.
    rows
        How many at most.
    path
        Where they are instead; the same loader reads them, and their labels may be missing.

    Raises
    ------
    DataError
        As `open_source` does.
    """
    settings = settings.keeping_missing()
    if _takes_windows(settings.loader):
        settings = settings.model_copy(update={"window_rows": min(rows, settings.window_rows or rows)})
    if not path:
        return _last(settings, manifest, rows)
    settings = settings.model_copy(update={"path": path})
    try:
        return _last(settings, manifest, rows)
    except DataError:
        # What an application logs has no labels yet; whatever else is wrong is wrong without them too.
        return _last(settings.model_copy(update={"label": ""}), without_labels(manifest), rows)


def without_labels(manifest: Manifest) -> Manifest:
    """Return a manifest by which loaders read x alone, as of a model whose y is x."""
    return manifest.model_copy(
        update={
            "y": manifest.x.model_copy(update={"name": "y"}),
            "class_names": (),
            "loss": "mean_squared_error",
            "data": manifest.data.model_copy(update={"labels": ()}),
        }
    )


def _last(settings: DataSettings, manifest: Manifest, rows: int) -> Dataset:
    source = open_source(settings, manifest)
    if hasattr(source, "verify"):
        source.verify()
    return Part(source, np.arange(max(0, len(source) - rows), len(source)))


def _takes_windows(name: str) -> bool:
    if ":" in name:
        return False
    try:
        loader = LOADERS.get(name)
    except ConfigurationError:
        return False  # opening it says what is wrong
    # Of files in class folders the newest are not the last.
    return isinstance(loader, FileLoader) and loader.windowed
