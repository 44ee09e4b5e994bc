"""The loader ``own``: for a client that loads its own data, such as a Flower app. Nothing is read, and no example is used.

What stands for the data are ten examples of zeros.
"""

from __future__ import annotations

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data_settings import DataSettings
from fedgrass.tensors import Array

# A fifth is kept back by default, which leaves the eight that minExamples asks for.
_EXAMPLES = 10


def load(settings: DataSettings, manifest: Manifest) -> tuple[Array, Array]:
    """Return the zeros."""
    del settings
    x, y = (np.zeros((_EXAMPLES, *one.shape), one.dtype) for one in (manifest.x, manifest.y))
    return x, y


loader = load
