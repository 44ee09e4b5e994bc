"""The codec float16: two bytes per scalar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array
from fedgrass.update.codecs import Fill, Floats, ReadInto, StoredTensor, Whole, WholeFloats, scratch

_PIECE = 1 << 15  # scalars whose places stay in a core's cache


class Float16:
    """Two bytes per scalar: 11 bits of precision; what would overflow is held at the largest half, 65,504."""

    lossless = False

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return one tensor of the parameter's shape."""
        return (StoredTensor(parameter.name, np.dtype("<f2"), parameter.shape),)

    def encode(self, parameter: TensorDescription, delta: Floats, _rng: np.random.Generator) -> tuple[Array, ...]:
        """Round to the nearest half-precision number; what is beyond its range is clipped to it.

        Parameters
        ----------
        parameter
            Name, shape and dtype.
        delta
            Finite float32 [n].
        _rng
            Not used: rounding is to the nearest.

        Returns
        -------
        tuple
            One tensor, little-endian float16.
        """
        # A cast alone would make infinity of larger values, and the update would be refused.
        limit = np.float32(np.finfo(np.float16).max)
        return (np.clip(delta, -limit, limit).astype("<f2").reshape(parameter.shape),)

    def decoder(self, _parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what widens."""

        def fill(values: Floats) -> None:
            halves = scratch("codes", len(values), np.dtype("<u2"))
            read(halves)
            widen_halves(halves, values)

        return fill

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what widens."""
        return WholeFloats(2 * sum(sizes), lambda stored, values: widen_halves(stored.view("<u2"), values))


def widen_halves(halves: NDArray[np.uint16], values: Floats) -> None:
    """Write half-precision numbers, given by their bits, as float32: what ``astype`` does, by a look-up that is faster."""
    room = scratch("places", min(_PIECE, len(halves)), np.dtype(np.intp))
    for start in range(0, len(halves), _PIECE):
        places = room[: len(halves) - start]
        places[...] = halves[start : start + _PIECE]
        np.take(_every_half(), places, out=values[start : start + _PIECE], mode="wrap")  # the fastest; none is outside


@lru_cache(maxsize=1)
def _every_half() -> Floats:
    return np.arange(1 << 16, dtype=np.uint16).view("<f2").astype(np.float32)


codec = Float16()
