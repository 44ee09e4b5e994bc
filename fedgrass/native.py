"""Parameters that the model's own code has in another dtype than float32, in which all of them travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from fedgrass.bundle import Native
from fedgrass.errors import BundleError
from fedgrass.tensors import Array

# The largest whole number up to which float32 holds all of them.
_LARGEST_EXACT = 1 << 24


def native_dtypes(parameters: Mapping[str, Array]) -> dict[str, Native]:
    """Return the dtypes that are not float32, by name.

    Raises
    ------
    BundleError
        If float32 cannot stand for one: text, objects, complex numbers, or whole numbers beyond 2^24.

    Examples
    --------
    >>> native_dtypes({"weight": np.zeros(2, np.float32), "seen": np.array(3)})
    {'seen': 'int64'}
    """
    found: dict[str, Native] = {}
    for name, value in parameters.items():
        dtype = np.asarray(value).dtype.name
        if dtype == "float32":
            continue
        known = next((one for one in get_args(Native) if one == dtype), None)
        if known is None:
            raise BundleError(
                f"parameter {name!r} is {dtype}; parameters travel as float32, which stands for {', '.join(get_args(Native))}: "
                "cast it, or leave it out"
            )
        if (
            known.startswith(("int", "uint"))
            and np.size(value)
            and np.abs(np.asarray(value, np.float64)).max() > _LARGEST_EXACT
        ):
            raise BundleError(
                f"parameter {name!r} is {dtype} with values beyond 2^24, which float32 rounds; leave it out"
            )
        found[name] = known
    return found


def as_native(value: Array, dtype: Native | None) -> Array:
    """Return a float32 array in the dtype that the model's own code has.

    Examples
    --------
    >>> as_native(np.array([2.6, -1.2], np.float32), "int64").tolist()
    [3, -1]
    """
    if dtype is None or dtype.startswith("float"):
        return value.astype(dtype or value.dtype)
    if dtype == "bool":
        # A mean of yes and no over devices: the majority decides.
        return np.asarray(value > 0.5)
    bounds = np.iinfo(dtype)
    # An average of counters is a fraction, and a server's step may take it beyond the dtype's range.
    return np.clip(np.rint(value.astype(np.float64)), bounds.min, bounds.max).astype(dtype)
