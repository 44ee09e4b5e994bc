"""The codec int4: half a byte per scalar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array
from fedgrass.update.codecs import Fill, Floats, ReadInto, StoredTensor, Whole, scratch
from fedgrass.update.quantized import SCALE, Scales, WholeGroups, groups_of, quantize


class Int4:
    """Half a byte per scalar, -7 to 7 times the scale of its group of 256; the first of two is in the low bits."""

    lossless = False
    group = 256

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return the scales, then the packed codes as a flat tensor."""
        return (
            StoredTensor(f"{parameter.name}#scales", SCALE, (groups_of(parameter.size, self.group),)),
            StoredTensor(parameter.name, np.dtype("<u1"), ((parameter.size + 1) // 2,)),
        )

    def encode(self, parameter: TensorDescription, delta: Floats, rng: np.random.Generator) -> tuple[Array, ...]:
        """Round to 4-bit codes by chance, two to a byte.

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
            A scale for each group, and uint8 bytes; the first code of two is in the low half.
        """
        scales, codes = quantize(delta, 7, self.group, rng)
        # Padded to whole bytes; the last half means nothing if the size is odd.
        nibbles = np.zeros((parameter.size + 1) // 2 * 2, np.uint8)
        nibbles[: parameter.size] = codes.view(np.uint8) & 15
        return scales, nibbles[0::2] | nibbles[1::2] << 4

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what unpacks and scales."""
        scales = Scales(parameter.size, self.group, read)

        def fill(values: Floats) -> None:
            packed = scratch("codes", (len(values) + 1) // 2, np.dtype("<u1"))
            read(packed)
            pairs = len(values) // 2
            np.take(_PAIRS, packed[:pairs], out=values[: 2 * pairs].view("<u8"), mode="clip")
            values[2 * pairs :] = _unpacked(packed[pairs:])[: len(values) % 2]
            scales.apply(values)

        return fill

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what unpacks and scales."""
        parts, at = [], 0
        # Each parameter begins at a whole byte.
        for size in sizes:
            parts.append(slice(at, at + size))
            at += size + size % 2

        def unpack(codes: NDArray[np.uint8], values: Floats) -> None:
            if at == len(values):
                np.take(_PAIRS, codes, out=values.view("<u8"), mode="clip")
            else:  # some parameter has an odd number, and a code that means nothing
                scalars = _unpacked(codes)
                np.concatenate([scalars[part] for part in parts], out=values)

        return WholeGroups(sizes, self.group, lambda size: (size + 1) // 2, unpack)


def _nibble_pairs() -> NDArray[np.uint64]:
    """Return, for each byte, the two float32 that its codes are, as one word: unpacking is then a single look-up."""
    signed = ((np.arange(16) + 8) % 16 - 8).astype("<f4")
    low, high = np.arange(256) & 15, np.arange(256) >> 4
    return np.stack([signed[low], signed[high]], axis=1).view("<u8").ravel()


_PAIRS = _nibble_pairs()


def _unpacked(packed: NDArray[np.uint8]) -> Floats:
    return np.take(_PAIRS, packed, mode="clip").view("<f4")  # any byte has its pair: clipping saves the check


codec = Int4()
