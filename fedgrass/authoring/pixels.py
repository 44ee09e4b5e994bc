"""The range of pixels that a Keras model expects, inferred from the first layer that its images reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

_KEPT = ("InputLayer", "Resizing", "CenterCrop", "ZeroPadding2D", "Cropping2D", "Permute", "Identity")
"""Layers that leave the range of pixels as it is; so do those whose names begin with Random."""

# 1/255 and 1/127.5 are below it; a scale such as 0.5 is for values of another range.
_LARGEST_SCALE = 1 / 64
_BYTES = (0.0, 255.0)


def pixel_range(model: object) -> tuple[float, float] | None:
    """Return 0 and 255 for a model of images that scales them itself, by ``Rescaling`` or ``Normalization``; else None.

    Parameters
    ----------
    model
        A Keras model; anything else gives None.
    """
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] not in (1, 3, 4):
        return None
    first = next((layer for layer in _layers(model) if not _keeps(layer)), None)
    kind = type(first).__name__
    if kind == "Rescaling" and np.max(np.abs(first.scale)) <= _LARGEST_SCALE:  # type: ignore[union-attr]
        return _BYTES
    # Means beyond 2 are of bytes: pixels of 0 to 1 have theirs within.
    if kind == "Normalization" and np.max(np.abs(np.asarray(first.mean))) > 2:  # type: ignore[union-attr]
        return _BYTES
    return None


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _keeps(layer: keras.Layer) -> bool:
    kind = type(layer).__name__
    return kind in _KEPT or kind.startswith("Random")
