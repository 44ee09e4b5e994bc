"""Loaders by name, or a function of the user's own as ``module:function``.

========== ======================================================================== ============================
loader     ``path``                                                                 memory
========== ======================================================================== ============================
``npz``    an archive of the arrays ``x`` and ``y``                                 all of it
``npy``    a folder with ``x.npy`` and ``y.npy``                                    a batch (they are mapped)
``csv``    a CSV file; see `fedgrass.data.tables.Table`                             a batch, from 64 MB on
``images`` a folder with one folder of images for each class                        a batch
========== ======================================================================== ============================
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import ArrayDataset, Source, Split, divide
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError
from fedgrass.tensors import Array

Loader = Callable[[DataSettings, Manifest], tuple[Array, Array] | Source]
"""What a function of the user's own is: it returns x and y, or something that can be read by example number."""


def open_source(settings: DataSettings, manifest: Manifest) -> Source:
    """Open the examples that the settings name, for this model.

    Raises
    ------
    DataError
        If the loader is unknown, or the data are missing, too large or empty. Whether they fit the model is checked
        by the engine.
    """
    loader = _BUILT_IN.get(settings.loader) or _custom(settings.loader)
    found = loader(settings, manifest)
    source = ArrayDataset(*found) if isinstance(found, tuple) else found
    if len(source) == 0:
        raise DataError(f"data {settings.path or settings.loader!r}: no examples")
    return source


def load(settings: DataSettings, manifest: Manifest) -> Split:
    """Read a device's examples for this model and split them; raises `DataError` as `open_source` does."""
    source = open_source(settings, manifest)
    return divide(source, validation_fraction=settings.validation_fraction, seed=settings.seed)


def load_npz(path: Path, *, max_bytes: int) -> tuple[Array, Array]:
    """Read the arrays ``x`` and ``y`` of an ``.npz`` file; nothing in it is executed.

    Raises
    ------
    DataError
        If the file is missing, is no such archive, or unpacks to more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise DataError(f"data {path}: unpacks to {unpacked} bytes; maxBytes is {max_bytes}")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise DataError(f"data {path}: expected arrays 'x' and 'y' ({error.args[0]})") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"data {path}: not a NumPy archive of plain arrays ({error})") from error


def _npz(settings: DataSettings, _manifest: Manifest) -> tuple[Array, Array]:
    return load_npz(settings.file, max_bytes=settings.max_bytes)


def _npy(settings: DataSettings, _manifest: Manifest) -> tuple[Array, Array]:
    x, y = (_mapped(settings.file / f"{name}.npy") for name in "xy")
    return x, y


def _mapped(path: Path) -> Array:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"data {path}: not a NumPy file of a plain array ({error})") from error


def _csv(settings: DataSettings, manifest: Manifest) -> Source:
    from fedgrass.data.tables import Table

    return Table(settings.file, manifest, label=settings.label, max_bytes=settings.max_bytes)


def _images(settings: DataSettings, manifest: Manifest) -> Source:
    from fedgrass.data.images import ImageFolder

    return ImageFolder(settings.file, manifest)


def _from_path(loader: Loader, settings: DataSettings, manifest: Manifest) -> tuple[Array, Array] | Source:
    if not settings.path:
        raise DataError(f"data: the {settings.loader} loader needs 'path' in the configuration of com.fedgrass.Runtime")
    return loader(settings, manifest)


_FROM_PATH: dict[str, Loader] = {"npz": _npz, "npy": _npy, "csv": _csv, "images": _images}
_BUILT_IN: dict[str, Loader] = {name: partial(_from_path, loader) for name, loader in _FROM_PATH.items()}


def _custom(name: str) -> Loader:
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise DataError(f"data loader {name!r}: expected one of {', '.join(sorted(_BUILT_IN))}, or module:function")
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"data loader {name!r}: cannot be imported ({error})") from error
    if not callable(function):
        raise DataError(f"data loader {name!r}: is not a function")
    return function  # type: ignore[no-any-return]
