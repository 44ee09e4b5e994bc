"""The codec float32: four bytes per scalar, exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array
from fedgrass.update.codecs import Fill, Floats, ReadInto, StoredTensor, Whole, WholeFloats


class Float32:
    """Four bytes per scalar: exact."""

    lossless = True

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return one tensor of the parameter's shape."""
        return (StoredTensor(parameter.name, np.dtype("<f4"), parameter.shape),)

    def encode(self, parameter: TensorDescription, delta: Floats, _rng: np.random.Generator) -> tuple[Array, ...]:
        """Return the difference itself.

        Parameters
        ----------
        parameter
            Name, shape and dtype.
        delta
            Finite float32 [n].
        _rng
            Not used: nothing is rounded.

        Returns
        -------
        tuple
            One tensor, little-endian float32.
        """
        return (delta.astype("<f4", copy=False).reshape(parameter.shape),)

    def decoder(self, _parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what reads straight into the arrays."""
        return read

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what copies."""
        return WholeFloats(4 * sum(sizes), _copy_floats)


def _copy_floats(stored: NDArray[np.uint8], values: Floats) -> None:
    values[...] = stored.view("<f4")


codec = Float32()
