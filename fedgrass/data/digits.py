"""Scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, what the examples train on."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
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
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits: scikit-learn brings them; pip install scikit-learn")
    # Read as load_digits() does, without importing scikit-learn and SciPy, which takes a second of the processor.
    rows = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x: Array = (rows[:, :-1] / _WHITE).astype(np.float32).reshape(-1, *shape)
    return ArrayDataset(x, rows[:, -1].astype(np.int32))


def digits_bundle() -> Path:
    """Return the folder of the bundle that learns them: the example, the demo's model, and the simulator's if none is named."""
    return Path(str(files("fedgrass.data") / "digits_bundle"))
