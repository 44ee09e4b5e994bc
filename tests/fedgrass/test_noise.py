"""The sampler against the formula's own probabilities, and the grid against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, norm

from fedgrass.errors import ConfigurationError
from fedgrass.noise import MOST_DEVIATION, Grid, Integers, discrete_gaussian, shrunk_to

SEED = bytes(range(32))


def drawn(size: int, deviation: int, seed: bytes = SEED) -> Integers:
    return np.concatenate(list(discrete_gaussian(seed, size, deviation)))


@pytest.mark.parametrize("deviation", [1, 2, 3, 7, 64])
def test_each_integer_comes_as_often_as_the_formula_says(deviation: int) -> None:
    found, reach = drawn(300_000, deviation), 12 * deviation
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2.0 * deviation**2))
    expected = weights / weights.sum() * len(found)
    assert np.abs(found).max() <= reach
    observed = np.bincount(found + reach, minlength=2 * reach + 1)
    common = expected > 20  # so that the statistic has its distribution
    odd = 0 if common.all() else 1
    counts = [*observed[common], *[observed[~common].sum()] * odd]
    wanted = [*expected[common], *[expected[~common].sum()] * odd]
    assert chisquare(counts, wanted).pvalue > 1e-4


@pytest.mark.parametrize("deviation", [1 << 24, 30_000_001, MOST_DEVIATION])
def test_fine_noise_is_gaussian_noise(deviation: int) -> None:
    found = drawn(200_000, deviation)
    assert kstest(found / deviation, norm.cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    lowest = np.bincount(found & 7, minlength=8)  # as even in the last bits as in the first
    assert chisquare(lowest).pvalue > 1e-4


def test_the_same_seed_gives_the_same_noise_wherever_it_is_cut_and_another_seed_other_noise() -> None:
    whole = drawn(70_000, 1000)
    assert np.array_equal(whole, drawn(70_000, 1000))
    assert np.array_equal(drawn(65_536, 1000), whole[:65_536])
    assert np.mean(drawn(70_000, 1000, b"x" * 32) == whole) < 0.01
    assert np.mean(whole[:4_000] == whole[65_536:69_536]) < 0.01
    for size in (0, 1, 65_535, 65_536, 65_537):
        assert len(drawn(size, 5)) == size if size else list(discrete_gaussian(SEED, 0, 5)) == []


def test_what_is_drawn_is_the_same_on_every_machine() -> None:
    assert drawn(8, 1000).tolist() == [-798, -2283, -283, 312, -2137, -981, 1732, 167]


@pytest.mark.parametrize("deviation", [0, -1, MOST_DEVIATION + 1])
def test_a_deviation_that_cannot_be_drawn_is_refused(deviation: int) -> None:
    with pytest.raises(ConfigurationError, match="deviation"):
        list(discrete_gaussian(SEED, 1, deviation))


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    bound=st.floats(1e-6, 1e3),
    multiplier=st.floats(0.01, 1e4),
)
@settings(max_examples=300, deadline=None)
def test_a_clipped_vector_never_passes_the_norm_by_so_much_as_its_last_bit(
    values: list[float], bound: float, multiplier: float
) -> None:
    vector = np.array(values, np.float32)
    grid = Grid.of(bound * multiplier)
    factor = shrunk_to(bound, math.sqrt(float(np.sum(vector.astype(np.float64) ** 2))))
    steps = grid.quantized(vector, factor)
    squares = sum(Fraction(float(one)) ** 2 for one in steps)
    assert squares * Fraction(grid.step) ** 2 <= Fraction(bound) ** 2
    assert np.array_equal(steps, np.trunc(steps))
    assert np.all(np.abs(steps * grid.step) <= np.abs(vector.astype(np.float64)))
    assert Fraction(grid.deviation) * Fraction(grid.step) >= Fraction(bound * multiplier)  # never less noise than asked


def test_a_noised_value_tells_nothing_by_its_last_bits() -> None:
    """Mironov's attack: with noise drawn as floats some outputs can only come of one of two inputs. Here every multiple can."""
    grid = Grid.of(1.0)
    sets = []
    for value, seed in ((0.0, b"a" * 32), (1.0, b"b" * 32)):
        steps = grid.quantized(np.full(50_000, value))
        grid.add_noise(steps, seed)
        sets.append(steps)
    for steps in sets:
        assert np.array_equal(steps, np.trunc(steps))
        assert chisquare(np.bincount((steps.astype(np.int64) % 16), minlength=16)).pvalue > 1e-4
