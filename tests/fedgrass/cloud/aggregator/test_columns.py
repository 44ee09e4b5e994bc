from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedgrass.strategies.arithmetic.columns import in_order, over_tiles
from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMetadata
from fedgrass.strategies.bulyan import BulyanRule
from fedgrass.strategies.median import MedianRule
from fedgrass.strategies.trimmed_mean import TrimmedMeanRule
from fedgrass.update.codecs import Floats

COUNT, SIZE = 201, 5000


class Matrix:
    """Rows in memory, in tiles of 1,999 columns."""

    base: Any = None
    facts = tuple(UpdateMetadata(f"t{i}", 1, {}, norm=1.0) for i in range(COUNT))

    def __init__(self) -> None:
        self.values = np.random.default_rng(0).standard_normal((COUNT, SIZE), np.float32)

    def tiles(self) -> Sequence[slice]:
        return [slice(start, min(start + 1999, SIZE)) for start in range(0, SIZE, 1999)]

    def read(self, columns: slice, chosen: Sequence[int] | None = None) -> Floats:
        rows = self.values if chosen is None else self.values[list(chosen)]
        return np.array(rows[:, columns])


def combined(combination: Combination, rows: Matrix) -> Floats:
    out = np.full(SIZE, np.nan, np.float32)
    combination.combine(rows, out)
    return out


def test_tiles_and_parts_make_up_what_numpy_makes_of_all_columns_at_once() -> None:
    rows = Matrix()
    ordered = np.sort(rows.values, axis=0).astype(np.float64)
    np.testing.assert_allclose(combined(MedianRule(), rows), np.median(ordered, axis=0), atol=1e-7)
    np.testing.assert_allclose(combined(TrimmedMeanRule(0.2), rows), ordered[40:-40].mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(combined(TrimmedMeanRule(0.0), rows), ordered.mean(axis=0), atol=1e-7)


def test_bulyan_takes_the_values_nearest_the_median_of_the_chosen() -> None:
    rows = Matrix()
    out = np.full(SIZE, np.nan, np.float32)
    shares = BulyanRule(0.2).combine(rows, out)
    chosen = rows.values[np.flatnonzero(shares)].astype(np.float64)
    nearest = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[: len(chosen) - 2 * 40]
    np.testing.assert_allclose(out, np.take_along_axis(chosen, nearest, axis=0).mean(axis=0), atol=1e-6)


def test_columns_come_in_order_and_once() -> None:
    values = Matrix().values
    parts = list(in_order(values))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate([ordered for _, ordered in parts]).T, np.sort(values, axis=0))
    assert [part.start for part, _ in parts[1:]] == [part.stop for part, _ in parts[:-1]]


def test_an_error_in_one_tile_is_the_callers() -> None:
    def work(columns: slice, _: Floats) -> None:
        if columns.start:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        over_tiles(Matrix(), work)
