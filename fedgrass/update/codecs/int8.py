"""The codec int8: one byte per scalar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array
from fedgrass.update.codecs import Fill, Floats, ReadInto, StoredTensor, Whole, scratch
from fedgrass.update.quantized import SCALE, Scales, WholeGroups, groups_of, quantize


class Int8:
    """One byte per scalar, -127 to 127 times the scale of its group of 1,024."""

    lossless = False
    group = 1024

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return the scales, then the codes in the parameter's shape."""
        return (
            StoredTensor(f"{parameter.name}#scales", SCALE, (groups_of(parameter.size, self.group),)),
            StoredTensor(parameter.name, np.dtype("<i1"), parameter.shape),
        )

    def encode(self, parameter: TensorDescription, delta: Floats, rng: np.random.Generator) -> tuple[Array, ...]:
        """Round to 8-bit codes by chance, so that the mean over many devices is true.

        Parameters
        ----------
        parameter
            Name, shape and dtype.
        delta
            Finite float32 [n].
        rng
            For the rounding.

        Returns
        -------
        tuple
            A scale for each group, and int8 codes of the parameter's shape.
        """
        scales, codes = quantize(delta, 127, self.group, rng)
        return scales, codes.reshape(parameter.shape)

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what widens and scales."""
        scales = Scales(parameter.size, self.group, read)

        def fill(values: Floats) -> None:
            codes = scratch("codes", len(values), np.dtype("<i1"))
            read(codes)
            values[...] = codes  # apart from scaling: a plain widening runs at the speed of memory
            scales.apply(values)

        return fill

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what widens and scales."""
        return WholeGroups(sizes, self.group, lambda size: size, _widen)


def _widen(codes: NDArray[np.uint8], values: Floats) -> None:
    values[...] = codes.view("<i1")


codec = Int8()
