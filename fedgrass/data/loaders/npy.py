"""The npy loader: a folder with ``x.npy`` and ``y.npy``, which are mapped; without the latter y is x, for a model with such.

A batch is in memory. Of several inputs or outputs there is a file for each, by its name; these are joined in memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.labels import Labels, takes_x_alone
from fedgrass.data.loaders import needed_path
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data.several import arrays_of
from fedgrass.data_settings import SAMPLE_WEIGHT, DataSettings
from fedgrass.errors import DataError
from fedgrass.tensors import Array


def load(settings: DataSettings, manifest: Manifest) -> tuple[Array, Array, Array | None]:
    """Map the arrays."""
    folder = needed_path(settings)
    file = folder / f"{settings.weight}.npy"
    weights = None if settings.weight == SAMPLE_WEIGHT and not file.exists() else _mapped(file)
    return (*_examples(folder, manifest), weights)


def _examples(folder: Path, manifest: Manifest) -> tuple[Array, Array]:
    if manifest.inputs or manifest.outputs:
        names = [part.name for part in manifest.inputs] or ["x"]
        names += [head.name for head in manifest.outputs] or ["y"]
        arrays = {name: _mapped(folder / f"{name}.npy") for name in names}
        return arrays_of(arrays, manifest)
    x = _mapped(folder / "x.npy")
    if takes_x_alone(manifest) and not (folder / "y.npy").exists():
        return x, x
    return x, Labels(manifest).of_array(_mapped(folder / "y.npy"))


def _mapped(path: Path) -> Array:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise DataError(f"data {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"data {path}: not a NumPy file of a plain array ({error})") from error


loader = FileLoader(load, marker="x.npy", windowed=False, several=True)
