"""Scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, what the examples train on."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np

from fedgrass.data.arrays import ArrayDataset
from fedgrass.errors import DataError
from fedgrass.tensors import Array

_WHITE = 16.0  # the data set's pixels are whole numbers from 0 to 16


def digits(shape: tuple[int, ...]) -> ArrayDataset:
    """Return all of them, pixels scaled to 0..1.

    Parameters
    ----------
    shape
        What the model takes for one image, holding 64 values.

    Raises
    ------
    DataError
        If scikit-learn, which brings them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: scikit-learn brings them; pip install scikit-learn") from error
    loaded = load_digits()
    x: Array = (loaded.data / _WHITE).astype(np.float32).reshape(-1, *shape)
    return ArrayDataset(x, loaded.target.astype(np.int32))


def digits_bundle() -> Path:
    """Return the folder of the bundle that learns them: the example, the demo's model, and the simulator's if none is named."""
    return Path(str(files("fedgrass.data") / "digits_bundle"))
