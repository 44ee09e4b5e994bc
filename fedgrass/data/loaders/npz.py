"""The npz loader: an archive of the arrays ``x`` and ``y``.

All of it is in memory.
"""

from __future__ import annotations

from fedgrass.bundle import Manifest
from fedgrass.data.loaders import load_npz, needed_path
from fedgrass.data_settings import DataSettings
from fedgrass.tensors import Array


def load(settings: DataSettings, manifest: Manifest) -> tuple[Array, Array]:
    """Return the examples of an archive of the arrays ``x`` and ``y``; of ``x`` alone for a model whose y is x."""
    return load_npz(needed_path(settings), max_bytes=settings.max_bytes, manifest=manifest)


loader = load
