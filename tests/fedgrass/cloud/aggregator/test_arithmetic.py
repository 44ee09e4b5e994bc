"""Sums of squares: the order of their additions, held against one that is written out, and what finite values can do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedgrass.cloud.aggregator.arithmetic import PIECE, sum_of_squares
from fedgrass.errors import UpdateError

SIZES = (0, 1, 2, 1023, 1024, 1025, 2047, 2048, 3000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1025)


def made(size: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(size).normal(size=size) * scale).astype(np.float32)


def written_out(values: np.ndarray[Any, Any]) -> float:
    total = 0.0
    for start in range(0, len(values), PIECE):
        squares = values[start : start + PIECE] * values[start : start + PIECE]
        columns, rows = np.zeros(1024, np.float32), len(squares) // 1024
        for row in range(rows):
            columns = columns + squares[1024 * row : 1024 * (row + 1)]
        total += float(pairwise(columns)) + float(pairwise(squares[1024 * rows :]))
    return total


def pairwise(values: np.ndarray[Any, Any]) -> Any:
    """NumPy's pairwise sum: eight sums side by side in up to 128 values, halves above."""
    if len(values) < 8:
        total = np.float32(0)
        for value in values:
            total += value
        return total
    if len(values) <= 128:
        eight, rest = values[:8].copy(), len(values) % 8
        for start in range(8, len(values) - rest, 8):
            eight += values[start : start + 8]
        total = ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]))
        for value in values[len(values) - rest :]:
            total += value
        return total
    half = len(values) // 2
    half -= half % 8
    return pairwise(values[:half]) + pairwise(values[half:])


@pytest.mark.parametrize("size", SIZES)
def test_the_order_of_additions_is_the_one_that_is_written_out(size: int) -> None:
    values = made(size)
    assert sum_of_squares(values) == written_out(values)
    shifted = np.empty(size + 1, np.float32)[1:]
    shifted[...] = values
    assert sum_of_squares(shifted) == written_out(values)  # wherever it lies in memory


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_is_the_sum_of_squares(size: int) -> None:
    values = made(size)
    assert sum_of_squares(values) == pytest.approx(float(np.square(values, dtype=np.float64).sum()), rel=2e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-15, 1e18, 1e19, 3e37])
def test_values_whose_squares_no_float32_holds_are_squared_all_the_same(scale: float) -> None:
    for size in (1, 1024, 3000, PIECE + 1):
        values = made(size, scale)
        with np.errstate(all="ignore"):
            found = sum_of_squares(values)
        assert found == pytest.approx(float(np.square(values, dtype=np.float64).sum()), rel=2e-6, abs=1e-75)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_wherever_it_is(odd: float) -> None:
    for size in (1, 1025, PIECE + 1):
        for place in {0, size // 2, size - 1}:
            values = made(size)
            values[place] = odd
            with np.errstate(all="ignore"), pytest.raises(UpdateError) as caught:
                sum_of_squares(values)
            assert caught.value.code == "not_finite"
