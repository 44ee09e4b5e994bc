"""Blockwise integers: groups of scalars share a scale, and each becomes a code of 8 or 4 bits.

Rounding is stochastic, so that the mean of many devices' codes is the mean of their differences (Alistarh et al., "QSGD",
NeurIPS 2017, https://arxiv.org/abs/1610.02132).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.update.codecs import Floats, ReadInto, joined

SCALE = np.dtype("<f4")
# Scalars: what is made of their scales stays in a core's cache, and takes no new memory from the system.
_PIECE = 3 << 13


def quantize(delta: Floats, levels: int, group: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int8]]:
    """Round a difference to codes by chance, each group by its own scale.

    Parameters
    ----------
    delta
        Finite float32 [n].
    levels
        Codes lie from ``-levels`` to ``levels``.
    group
        Scalars that share a scale.
    rng
        For the rounding: up with the probability of what is cut off, so that codes are true on average.

    Returns
    -------
    tuple
        Scales, float32 [groups], and codes, int8 [n].
    """
    # Zeros behind the last scalar change no group's scale.
    padded = np.zeros((groups_of(len(delta), group), group), np.float32)
    padded.reshape(-1)[: len(delta)] = delta
    scales = np.abs(padded).max(axis=1) / np.float32(levels)
    scales[scales < np.finfo(np.float32).tiny] = 0  # the inverse of what is below would overflow
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    padded *= inverse[:, None]
    # floor(x + u) rounds up with the probability of x's fraction.
    padded += rng.random(padded.shape, np.float32)
    np.floor(padded, out=padded)
    np.clip(padded, -levels, levels, out=padded)
    return scales.astype(SCALE, copy=False), padded.reshape(-1)[: len(delta)].astype(np.int8)


def groups_of(size: int, group: int) -> int:
    """Return the number of groups of so many scalars; the last may be short."""
    return -(-size // group)


class WholeGroups:
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
            groups = groups_of(size, group)
            self._scales.append(slice(at, at + SCALE.itemsize * groups))
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
        scales = joined(stored, self._scales).view(SCALE)
        self._unpack(joined(stored, self._codes), values)
        for groups, part in self._pieces:
            np.multiply(values[part], scales[groups].repeat(self._counts[groups]), out=values[part])


class Scales:
    """The scales of a parameter's groups, used one after the other."""

    def __init__(self, size: int, group: int, read: ReadInto) -> None:
        self._group = group
        self._left = np.empty(groups_of(size, group), SCALE)
        read(self._left)

    def apply(self, values: Floats) -> None:
        """Multiply each group by its scale, in place. A hostile one gives what is not finite, which the reader's user refuses."""
        used = 0
        for start in range(0, len(values), _PIECE):
            piece = values[start : start + _PIECE]
            count = groups_of(len(piece), self._group)
            scales = self._left[used : used + count].repeat(self._group)
            np.multiply(piece, scales[: len(piece)], out=piece)
            used += count
        self._left = self._left[used:]
