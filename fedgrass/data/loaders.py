"""Loaders by name: ``npz``, or a function of the user's own as ``module:function``."""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Split, split
from fedgrass.errors import DataError
from fedgrass.tensors import Array


class DataSettings(BaseModel):
    """Where a device's examples are, as the component's configuration says it (camelCase there)."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    loader: str = Field(default="npz", max_length=200)
    path: str = Field(default="", max_length=1024)
    validation_fraction: float = Field(default=0.2, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    max_bytes: int = Field(default=1 << 30, ge=1, description="Larger data are refused before memory is taken")

    @property
    def file(self) -> Path:
        """``path`` with the component's environment variables filled in, ``$AWS_IOT_THING_NAME`` among them."""
        return Path(os.path.expandvars(self.path)).expanduser()


Loader = Callable[[DataSettings, Manifest], tuple[Array, Array]]


def load(settings: DataSettings, manifest: Manifest) -> Split:
    """Read a device's examples for this model and split them.

    Raises
    ------
    DataError
        If the loader is unknown, or the data are missing, too large or empty. Whether they fit the model is checked
        by the engine.
    """
    loader = _BUILT_IN.get(settings.loader) or _custom(settings.loader)
    x, y = loader(settings, manifest)
    if len(x) == 0:
        raise DataError(f"data {settings.path or settings.loader!r}: no examples")
    if len(x) != len(y):
        raise DataError(f"data {settings.path or settings.loader!r}: x has {len(x)} examples and y {len(y)}")
    return split(x, y, validation_fraction=settings.validation_fraction, seed=settings.seed)


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
    if not settings.path:
        raise DataError("data: the npz loader needs 'path' in the configuration of com.fedgrass.Runtime")
    return load_npz(settings.file, max_bytes=settings.max_bytes)


_BUILT_IN: dict[str, Loader] = {"npz": _npz}


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
