"""Loaders: one module each, those that installed packages register, or a user's function, given as ``module:function``.

Each module says what ``path`` is to its loader, and how much memory that takes.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import ArrayDataset, Source, Split, divide
from fedgrass.data.labels import Labels, takes_x_alone
from fedgrass.data.loaders.described import Read
from fedgrass.data.several import arrays_of
from fedgrass.data_settings import SAMPLE_WEIGHT, DataSettings
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.parts import LOADERS
from fedgrass.tensors import Array


def open_source(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the examples that the settings name, for this model.

    Raises
    ------
    DataError
        If the loader is unknown, or the data are missing, too large or empty. Whether they fit the model is checked
        by the engine.
    """
    found = _loader(settings.loader)(settings, manifest)
    source = ArrayDataset(*found) if isinstance(found, tuple) else found
    _require_some(source, settings)
    return source


def load(settings: DataSettings, manifest: Manifest) -> Split:
    """Read a device's examples for this model and split them.

    Raises
    ------
    DataError
        As `open_source` does, or if more of the examples are bad than the settings allow.
    """
    source = open_source(settings, manifest)
    if hasattr(source, "verify"):
        source.verify()
        _require_some(source, settings)
    parts = divide(source, validation_fraction=settings.validation_fraction, seed=settings.seed)
    return replace(parts, account=getattr(source, "account", None))


def count(settings: DataSettings, manifest: Manifest) -> int:
    """Return how many examples `load` would train on, as far as that shows without reading each image."""
    source = open_source(settings, manifest)
    return len(divide(source, validation_fraction=settings.validation_fraction, seed=settings.seed).train)


def _require_some(source: Source, settings: DataSettings) -> None:
    if len(source) == 0:
        raise DataError(f"data {settings.path or settings.loader!r}: no examples")


def load_npz(path: Path, *, max_bytes: int, manifest: Manifest | None = None) -> tuple[Array, Array]:
    """Read the arrays ``x`` and ``y`` of an ``.npz`` file; see `read_npz`.

    Parameters
    ----------
    path
        The file.
    max_bytes
        Of what it unpacks to.
    manifest
        The model's.

    Returns
    -------
    tuple
        x and y.

    Raises
    ------
    DataError
        As `read_npz`.
    """
    return read_npz(path, max_bytes=max_bytes, manifest=manifest)[:2]


def read_npz(
    path: Path, *, max_bytes: int, manifest: Manifest | None = None, weight: str = SAMPLE_WEIGHT
) -> tuple[Array, Array, Array | None]:
    """Read the arrays ``x`` and ``y`` of an ``.npz`` file, and the examples' weights; nothing in it is executed.

    Those of several inputs or outputs are called as these are.

    Parameters
    ----------
    weight
        Name of the weights' array, which may be missing if it is called ``sample_weight``.
    manifest
        The model's, by which labels become y, and ``y`` may be absent where it is x.

    Raises
    ------
    DataError
        If the file is missing, is not such an archive, or unpacks to more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # By the archive's directory, before anything is unpacked.
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise DataError(f"data {path}: unpacks to {unpacked} bytes; maxBytes is {max_bytes}")
        # A pickle in an .npz is code, and the file may come from anywhere.
        with np.load(path, allow_pickle=False) as arrays:
            weights = None if weight == SAMPLE_WEIGHT and weight not in arrays else arrays[weight]
            return (*_examples(path, arrays, manifest), weights)
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise DataError(f"data {path}: expected arrays 'x' and 'y' ({error.args[0]})") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"data {path}: not a NumPy archive of plain arrays ({error})") from error


def _examples(path: Path, arrays: Mapping[str, Array], manifest: Manifest | None) -> tuple[Array, Array]:
    if manifest is not None and (manifest.inputs or manifest.outputs):
        return _several(path, arrays, manifest)
    if manifest is not None and "y" not in arrays and takes_x_alone(manifest):
        return arrays["x"], arrays["x"]
    return arrays["x"], arrays["y"] if manifest is None else Labels(manifest).of_array(arrays["y"])


def _several(path: Path, arrays: Mapping[str, Array], manifest: Manifest) -> tuple[Array, Array]:
    try:
        return arrays_of(arrays, manifest)
    except DataError as error:
        raise DataError(f"data {path}: {error}") from error


def needed_path(settings: DataSettings) -> Path:
    """Return the path that a loader reads; raises `DataError` if the configuration has none."""
    if not settings.path:
        raise DataError(f"data: the {settings.loader} loader needs 'path' in the configuration of com.fedgrass.Runtime")
    return settings.file


def _loader(name: str) -> Read:
    if ":" not in name:
        try:
            return LOADERS.get(name)
        except ConfigurationError as error:
            raise DataError(f"data {error}") from error
    module_name, _, function_name = name.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"data loader {name!r}: cannot be imported ({error})") from error
    if not callable(function):
        raise DataError(f"data loader {name!r}: is not a function")
    return function  # type: ignore[no-any-return]
