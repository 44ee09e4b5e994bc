"""The npz loader: an archive of the arrays ``x`` and ``y``, and perhaps ``sample_weight``.

All of it is in memory.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.loaders import needed_path, read_npz
from fedgrass.data.loaders.described import FileLoader
from fedgrass.data_settings import DataSettings
from fedgrass.tensors import Array


def load(settings: DataSettings, manifest: Manifest) -> tuple[Array, Array, Array | None]:
    """Return the examples of an archive of the arrays ``x`` and ``y``; of ``x`` alone for a model whose y is x."""
    path = needed_path(settings)
    return read_npz(path, max_bytes=settings.max_bytes, manifest=manifest, weight=settings.weight)


loader = FileLoader(load, suffixes=(".npz",), windowed=False, several=True)
