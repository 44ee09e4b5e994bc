"""Sums that add up: held against plain NumPy on all data in one place."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.profile.sums import Bounds, FeatureSums

values = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e6, float("nan"), float("inf"), float("-inf")]),
)
tables = st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=40)


def summed(x: Any, bounds: Bounds | None = None) -> FeatureSums:
    found = FeatureSums(np.shape(x)[1], bounds=bounds)
    found.add(np.asarray(x, np.float64))
    return found


def exact(column: Any) -> tuple[Fraction, Fraction]:
    numbers = [Fraction(float(value)) for value in column]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return mean, sum(((number - mean) ** 2 for number in numbers), Fraction(0)) / len(numbers)


@settings(max_examples=150, deadline=None)
@given(tables, st.lists(st.integers(0, 40), max_size=4))
def test_parts_merged_in_any_division_are_the_sums_of_all(table: Any, cuts: list[int]) -> None:
    x = np.asarray(table, np.float64)
    bounds = Bounds(np.array([-1.0, 0.0, -1e6]), np.array([1.0, 0.0, 1e6]), 7)
    total = FeatureSums(3, bounds=bounds)
    for part in np.split(x, sorted(min(cut, len(x)) for cut in cuts)):
        other = FeatureSums(3, bounds=bounds)
        other.add(part)
        total.merge(other)
    whole = summed(x, bounds)
    for name in ("count", "missing", "low", "high", "histogram"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name), err_msg=name)
    for feature in range(3):
        column = x[:, feature][np.isfinite(x[:, feature])]
        assert total.count[feature] == len(column)
        assert total.histogram[feature].sum() == len(column)
        if len(column):
            mean, variance = exact(column)
            size = max(np.abs(column))
            assert total.mean[feature] == pytest.approx(float(mean), rel=1e-12, abs=1e-13 * size)
            assert total.variance[feature] == pytest.approx(float(variance), rel=1e-10, abs=1e-13 * size * size)
            assert (total.low[feature], total.high[feature]) == (column.min(), column.max())


def test_a_variance_beside_a_large_mean_is_not_cancelled() -> None:
    generator = np.random.default_rng(0)
    # Deviations of a thousandth on a mean of a billion: a sum of squares would have lost them all.
    x = 1e9 + generator.normal(scale=1e-3, size=(20_000, 1))
    total = FeatureSums(1)
    for part in np.array_split(x, 100):
        total.merge(summed(part))
    assert total.variance[0] == pytest.approx(float(exact(x[:, 0])[1]), rel=1e-5)  # means are float64, too


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60),
    st.floats(-120, 120),
    st.floats(0, 200),
    st.integers(2, 30),
    st.sampled_from([0.0, 0.01, 0.07, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantile_is_no_farther_off_than_it_says(
    column: list[float], low: float, wide: float, bins: int, share: float
) -> None:
    bounds = Bounds(np.array([low]), np.array([low + wide]), bins)
    found = summed(np.array(column)[:, None], bounds).quantile(0, share)
    assert found is not None
    true = np.quantile(column, share, method="inverted_cdf")
    assert abs(found[0] - true) <= found[1]


def test_bounds_that_are_the_datas_keep_the_error_within_a_bin() -> None:
    x = np.random.default_rng(1).normal(size=(5000, 1))
    bounds = Bounds(x.min(axis=0), x.max(axis=0), 64)
    found = summed(x, bounds).quantile(0, 0.5)
    assert found is not None
    assert found[1] <= 1.001 * float(np.ptp(x)) / 64


def test_beyond_bounds_that_are_held_nothing_is_said() -> None:
    x = np.array([[-5.0], [0.5], [7.0]])
    sums = summed(x, Bounds(np.array([0.0]), np.array([1.0]), 4, held=True))
    assert sums.quantile(0, 0.01) is None
    assert sums.quantile(0, 0.99) is None
    assert sums.quantile(0, 0.5) is not None


def test_bins_are_numpys_histogram() -> None:
    x = np.random.default_rng(2).uniform(-2, 2, size=(4000, 1))
    x[:4, 0] = [-1.0, 1.0, 0.0, 0.5]  # on the edges: the last one is closed
    sums = summed(x, Bounds(np.array([-1.0]), np.array([1.0]), 8))
    expected, _ = np.histogram(x[:, 0], 8, (-1, 1))
    np.testing.assert_array_equal(sums.histogram[0, 1:-1], expected)
    assert sums.histogram[0, 0] == (x < -1).sum()
    assert sums.histogram[0, -1] == (x > 1).sum()


def test_a_device_beyond_the_cap_weighs_as_the_cap() -> None:
    a, b = np.zeros((100, 1)), np.ones((300, 1))
    total = FeatureSums(1)
    total.merge(summed(a))
    total.merge(summed(b), 1 / 3)
    assert total.mean[0] == pytest.approx(0.5)
    assert total.variance[0] == pytest.approx(0.25)
    assert total.examples == pytest.approx(200)


def test_values_at_the_ends_of_float32_do_not_overflow() -> None:
    x = np.array([[3e38], [-3e38]])
    bounds = Bounds(np.array([-3e38]), np.array([3e38]), 4)
    sums = summed(x, bounds)
    assert sums.variance[0] == pytest.approx(9e76)
    assert sums.histogram[0].tolist() == [0, 1, 0, 0, 1, 0]
