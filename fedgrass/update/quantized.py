"""Blockwise integers: groups of scalars share a scale, and each becomes a code of 8 or 4 bits.

Rounding is stochastic, so that the mean of many devices' codes is the mean of their differences (Alistarh et al., "QSGD",
NeurIPS 2017, https://arxiv.org/abs/1610.02132).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array
from fedgrass.update.codecs import Fill, Floats, ReadInto, StoredTensor, Whole, joined, scratch

_SCALE = np.dtype("<f4")
_PIECE = 3 << 13  # scalars: what is made of their scales stays in a core's cache, and is no memory from the system


class Int8:
    """One byte per scalar, -127 to 127 times the scale of its group of 1,024."""

    lossless = False
    group = 1024

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return the scales, then the codes in the parameter's shape."""
        return (
            StoredTensor(f"{parameter.name}#scales", _SCALE, (_groups(parameter.size, self.group),)),
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
        scales, codes = _quantize(delta, 127, self.group, rng)
        return scales, codes.reshape(parameter.shape)

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what widens and scales."""
        scales = _Scales(parameter.size, self.group, read)

        def fill(values: Floats) -> None:
            codes = scratch("codes", len(values), np.dtype("<i1"))
            read(codes)
            values[...] = codes  # apart from scaling: a plain widening runs at the speed of memory
            scales.apply(values)

        return fill

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what widens and scales."""
        return _WholeGroups(sizes, self.group, lambda size: size, _widen)


def _widen(codes: NDArray[np.uint8], values: Floats) -> None:
    values[...] = codes.view("<i1")


class Int4:
    """Half a byte per scalar, -7 to 7 times the scale of its group of 256; the first of two is in the low bits."""

    lossless = False
    group = 256

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return the scales, then the packed codes as a flat tensor."""
        return (
            StoredTensor(f"{parameter.name}#scales", _SCALE, (_groups(parameter.size, self.group),)),
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
        scales, codes = _quantize(delta, 7, self.group, rng)
        nibbles = np.zeros((parameter.size + 1) // 2 * 2, np.uint8)
        nibbles[: parameter.size] = codes.view(np.uint8) & 15
        return scales, nibbles[0::2] | nibbles[1::2] << 4

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what unpacks and scales."""
        scales = _Scales(parameter.size, self.group, read)

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
        for size in sizes:
            parts.append(slice(at, at + size))
            at += size + size % 2

        def unpack(codes: NDArray[np.uint8], values: Floats) -> None:
            if at == len(values):
                np.take(_PAIRS, codes, out=values.view("<u8"), mode="clip")
            else:  # some parameter has an odd number, and a code that means nothing
                scalars = _unpacked(codes)
                np.concatenate([scalars[part] for part in parts], out=values)

        return _WholeGroups(sizes, self.group, lambda size: (size + 1) // 2, unpack)


def _nibble_pairs() -> NDArray[np.uint64]:
    """Return, for each byte, the two float32 that its codes are, as one word: unpacking is then a single look-up."""
    signed = ((np.arange(16) + 8) % 16 - 8).astype("<f4")
    low, high = np.arange(256) & 15, np.arange(256) >> 4
    return np.stack([signed[low], signed[high]], axis=1).view("<u8").ravel()


_PAIRS = _nibble_pairs()


def _unpacked(packed: NDArray[np.uint8]) -> Floats:
    return np.take(_PAIRS, packed, mode="clip").view("<f4")  # any byte has its pair: clipping saves the check


def _quantize(delta: Floats, levels: int, group: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int8]]:
    padded = np.zeros((_groups(len(delta), group), group), np.float32)
    padded.reshape(-1)[: len(delta)] = delta
    scales = np.abs(padded).max(axis=1) / np.float32(levels)
    scales[scales < np.finfo(np.float32).tiny] = 0  # what is below has no inverse
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    padded *= inverse[:, None]
    padded += rng.random(padded.shape, np.float32)
    np.floor(padded, out=padded)
    np.clip(padded, -levels, levels, out=padded)
    return scales.astype(_SCALE, copy=False), padded.reshape(-1)[: len(delta)].astype(np.int8)


def _groups(size: int, group: int) -> int:
    return -(-size // group)


class _WholeGroups:
    """Decodes the scales and codes of all parameters as two vectors.

    Parameters
    ----------
    sizes, group
        Scalars of each parameter, and of a group in it.
    code_bytes
        Bytes of the codes of so many scalars.
    unpack
        Writes the codes of all parameters as numbers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        group: int,
        code_bytes: Callable[[int], int],
        unpack: Callable[[NDArray[np.uint8], Floats], None],
    ) -> None:
        self._unpack = unpack
        self._scales: list[slice] = []
        self._codes: list[slice] = []
        counts: list[int] = []
        at = 0
        for size in sizes:
            groups = _groups(size, group)
            self._scales.append(slice(at, at + _SCALE.itemsize * groups))
            at = self._scales[-1].stop
            self._codes.append(slice(at, at + code_bytes(size)))
            at = self._codes[-1].stop
            counts += [min(group, size - start) for start in range(0, size, group)]
        self.nbytes = at
        self._counts = np.array(counts, np.intp)
        ends = np.cumsum([0, *counts])
        step = max(1, _PIECE // group)
        self._pieces = [
            (slice(first, first + step), slice(int(ends[first]), int(ends[min(first + step, len(counts))])))
            for first in range(0, len(counts), step)
        ]

    def decode(self, stored: NDArray[np.uint8], values: Floats) -> None:
        """Widen the codes, and multiply each by its group's scale; a hostile scale gives what is not finite."""
        if not len(values):
            return
        scales = joined(stored, self._scales).view(_SCALE)
        self._unpack(joined(stored, self._codes), values)
        for groups, part in self._pieces:
            np.multiply(values[part], scales[groups].repeat(self._counts[groups]), out=values[part])


class _Scales:
    """The scales of a parameter's groups, used one after the other."""

    def __init__(self, size: int, group: int, read: ReadInto) -> None:
        self._group = group
        self._left = np.empty(_groups(size, group), _SCALE)
        read(self._left)

    def apply(self, values: Floats) -> None:
        """Multiply each group by its scale, in place. A hostile one gives what is not finite, which the reader's user refuses."""
        used = 0
        for start in range(0, len(values), _PIECE):
            piece = values[start : start + _PIECE]
            count = _groups(len(piece), self._group)
            scales = self._left[used : used + count].repeat(self._group)
            np.multiply(piece, scales[: len(piece)], out=piece)
            used += count
        self._left = self._left[used:]
