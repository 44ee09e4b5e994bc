"""The arithmetic of sums: NumPy's own elementwise loops, and its pairwise sum of what is left of squares, in a fixed order.

No BLAS: its results depend on the processor. What is here gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fedgrass.errors import UpdateError
from fedgrass.noise import Grid
from fedgrass.strategies.arithmetic.interfaces import Sums
from fedgrass.update.codecs import Floats

UNIT = 2.0**-40
"""Weights are taken in this unit, a power of two: so the sum of the largest finite values does not overflow."""

PIECE = 1 << 17
"""Values that are squared at once: they stay in a core's cache. Changing it changes norms by rounding."""

_WIDTH = 1024  # squares are added in so many columns: a sum of rows is twice as fast as that of a row

_LEAST = 2.0**-100  # below it a float32 weight would lose digits, and its products too
_LEAST_SQUARES = 1e-30


class Terms(Protocol):
    """How weighted updates are added up."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return what sums are held in."""
        ...

    def scaled(self, values: Floats, weight: float, out: Sums) -> None:
        """Write the weighted values to ``out``.

        Parameters
        ----------
        values
            float32 [n].
        weight
            What they are multiplied by, the factor `UNIT` included.
        out
            [n] of `dtype`, overwritten.
        """
        ...

    def add_scaled(self, total: Sums, values: Floats, weight: float) -> None:
        """Add the weighted values to a sum.

        Parameters
        ----------
        total
            [n] of `dtype`, added to.
        values
            float32 [n]; they may be overwritten.
        weight
            What they are multiplied by, the factor `UNIT` included.
        """
        ...


class Rounded:
    """In float32, each term and sum rounded to the nearest."""

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def scaled(self, values: Floats, weight: float, out: Sums) -> None:
        """See the function `scaled`."""
        scaled(values, weight, out)

    def add_scaled(self, total: Sums, values: Floats, weight: float) -> None:
        """See the function `add_scaled`."""
        add_scaled(total, values, weight)


class WholeSteps:
    """In whole steps of a grid, held in float64: sums are exact, so that one update changes them by itself and nothing else.

    Central privacy needs that: its noise hides one update of the norm that it was made for, and no rounding of others.
    """

    dtype: np.dtype[Any] = np.dtype(np.float64)

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def scaled(self, values: Floats, weight: float, out: Sums) -> None:
        """Write the whole steps of the weighted values."""
        np.copyto(out, self._grid.quantized(values, weight / UNIT))

    def add_scaled(self, total: Sums, values: Floats, weight: float) -> None:
        """Add the whole steps of the weighted values."""
        np.add(total, self._grid.quantized(values, weight / UNIT), out=total)


def scaled(values: Floats, weight: float, out: Sums) -> None:
    """Write the weighted values to ``out``, which may be the same array.

    Parameters
    ----------
    values
        float32 [n].
    weight
        Below the smallest normal float32 it multiplies in float64, which keeps its digits.
    out
        float32 [n], written; it may be ``values``.
    """
    # The usual case. Only a weight near the smallest normal float32 would lose digits in a float32 product.
    if weight >= _LEAST:
        np.multiply(values, np.float32(weight), out=out)
    else:
        np.multiply(values, weight, out=out, dtype=np.float64, casting="same_kind")


def add_scaled(total: Sums, values: Floats, weight: float) -> None:
    """Add weighted values to a sum, overwriting the values.

    Parameters
    ----------
    total
        float32 [n], added to.
    values
        float32 [n]; they hold the weighted values afterwards.
    weight
        As of `scaled`.
    """
    scaled(values, weight, values)
    np.add(total, values, out=total)


def sum_of_squares(values: Floats, spare: Floats | None = None) -> float:
    """Return the sum of the squares of finite values.

    One pass says both things: what is not finite makes the sum so too. Run it under ``np.errstate(all="ignore")``.

    Parameters
    ----------
    values
        The values, in one dimension.
    spare
        Room for `PIECE` values; made if not given.

    Raises
    ------
    UpdateError
        Coded ``not_finite``.
    """
    room: Floats = np.empty(min(PIECE, len(values)), np.float32) if spare is None else spare
    return sum(_squares(values[start : start + PIECE], room) for start in range(0, len(values), PIECE))


def _squares(values: Floats, room: Floats) -> float:
    squared = np.square(values, out=room[: len(values)])
    # The rest that does not fill a row is summed by itself, first: the order of additions is part of the result.
    whole = len(squared) - len(squared) % _WIDTH
    squares = float(np.add.reduce(squared[whole:]))
    if whole:
        squares += float(np.add.reduce(np.add.reduce(squared[:whole].reshape(-1, _WIDTH))))
    # The usual case costs one comparison; NaN fails it, too.
    if _LEAST_SQUARES < squares < math.inf:
        return squares
    # Beyond these bounds finite values may be too large or too small for a float32 square: only then look closer.
    if not np.isfinite(values).all():
        raise UpdateError("not_finite", "among its values are some that are not finite")
    return float(np.square(values, dtype=np.float64).sum())


def norm_of(squares: Sequence[float]) -> float:
    """Return the L2 norm of values of whose parts these are the sums of squares, whatever their order."""
    # fsum is exact, so threads may append the parts in any order.
    return math.sqrt(math.fsum(squares))
