"""Floats to integers and their sum back: held against plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import AggregationError, DivergedError
from fedgrass.protocol.secure import COUNT_BITS, SecureTask
from fedgrass.secure.masks import PIECE, SEED_BYTES, Expander, Masked, add_mask, span
from fedgrass.secure.quantize import Blocks, doubt, examples_in, mean_of, quantized
from tests.fedgrass.secure.fleets import task_of


def blocks(values: np.ndarray[Any, np.dtype[np.float32]], cut: int = 7) -> Blocks:
    def some() -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        yield values[:cut]
        yield values[cut:]

    return some


def changed(task: SecureTask, **changes: object) -> SecureTask:
    return SecureTask.model_validate({**task.model_dump(), **changes})


def summed(rows: list[Masked]) -> Masked:
    total: Masked = np.zeros_like(rows[0])
    for row in rows:
        np.add(total, row, out=total)
    return total


@given(bits=st.sampled_from([16, 32]), most=st.integers(1, 20_000))
def test_the_widest_values_of_the_most_devices_never_pass_the_modulus(bits: int, most: int) -> None:
    task = task_of(bits=bits, most=most)
    assert 2 * task.levels * most < 1 << bits
    assert 2 * (task.levels + 1) * most >= 1 << bits or task.levels == ((1 << bits) - 1) // (2 * most)
    assert most * ((1 << task.count_bits) - 1) < 1 << bits
    assert task.count_bits * task.count_coordinates >= COUNT_BITS


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("most", [1, 2, 1000, 10_000, 30_000])
def test_extreme_values_and_counts_of_all_devices_come_back(bits: int, most: int) -> None:
    task = changed(task_of(bits=bits, most=most), max_examples=(1 << COUNT_BITS) - 1)
    row = quantized(blocks(np.array([9, -9, 4, -4, 0], np.float32)), 5, 1 << 40, task, seed=1)
    total: Masked = np.zeros_like(row)
    np.multiply(row, row.dtype.type(most), out=total)
    assert examples_in(total, task) == most * task.max_examples
    assert np.allclose(mean_of(total, most, task), [4, -4, 4, -4, 0], rtol=1e-6)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("equal", [False, True])
def test_the_mean_is_numpys_but_for_a_step_and_right_on_average(bits: int, equal: bool) -> None:
    draws = np.random.default_rng(3)
    task = changed(task_of(bits=bits, most=100), equal=equal, value_range=1.0, max_examples=50)
    values = [draws.uniform(-0.9, 0.9, PIECE + 11).astype(np.float32) for _ in range(20)]
    counts = draws.integers(1, 80, 20)
    rows = [
        quantized(blocks(v), len(v), int(n), task, seed=i) for i, (v, n) in enumerate(zip(values, counts, strict=True))
    ]
    weights = np.ones(20) if equal else np.minimum(counts, 50)
    expected = np.average(np.array(values, np.float64), axis=0, weights=weights)
    found = mean_of(summed(rows), 20, task)
    step = 1 / task.levels * (1.0 if equal else 50 * 20 / weights.sum())
    assert np.abs(found - expected).max() <= step + 1e-6
    # The mean error of so many coordinates is far below a step: rounding is no bias.
    assert abs((found - expected).mean()) < step / 50 + 1e-7


@pytest.mark.parametrize("bits", [16, 32])
def test_a_clipped_difference_stays_within_its_norm_rounding_included(bits: int) -> None:
    draws = np.random.default_rng(5)
    task = changed(task_of(bits=bits, most=100), equal=True, value_range=0.5)
    for size in (3, 400, PIECE + 5):
        values = draws.normal(size=size).astype(np.float32)
        row = quantized(blocks(values), size, 1, task, seed=1, clip_norm=1.0)
        whole = row[:size].view(f"<i{row.dtype.itemsize}").astype(object)
        norm = math.sqrt(sum(int(x) ** 2 for x in whole)) * task.value_range / task.levels
        assert 0 < norm <= 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_what_is_not_finite_is_no_update(bad: float, clip: float) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        quantized(blocks(np.array([1, bad], np.float32)), 2, 1, task_of(), seed=1, clip_norm=clip)


def test_a_sum_that_claims_impossible_examples_makes_no_model() -> None:
    task = task_of()
    row = quantized(blocks(np.zeros(3, np.float32)), 3, 5, task, seed=1)
    with pytest.raises(AggregationError, match="the sum of 6 updates claims 5 examples, expected 6 to"):
        mean_of(row, 6, task)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_count_that_would_lengthen_the_mean_beyond_what_devices_can_send_makes_no_model(bits: int) -> None:
    task = changed(task_of(bits=bits, most=100), max_examples=100)
    rows = [quantized(blocks(np.full(3, v, np.float32)), 3, 100, task, seed=1) for v in (4.0, 3.9)]
    total = summed(rows)
    assert np.allclose(mean_of(total, 2, task), 3.95, atol=8 / task.levels)
    # One of the two takes 150 examples off the count: it is possible, and the mean would be four times as long.
    for index in range(task.count_coordinates):
        total[3 + index] = (50 >> (index * task.count_bits)) & ((1 << task.count_bits) - 1)
    assert examples_in(total, task) == 50
    with pytest.raises(AggregationError, match="mean beyond value_range 4, by the examples that it claims"):
        mean_of(total, 2, task)


def test_where_all_count_alike_no_count_is_told() -> None:
    task = changed(task_of(), equal=True)
    assert examples_in(quantized(blocks(np.zeros(3, np.float32)), 3, 500, task, seed=1), task) == 1


def told(total: Any, examples: int, task: SecureTask) -> Any:
    """The sum with another number of examples."""
    changed_total, size = total.copy(), len(total) - task.count_coordinates
    for index in range(task.count_coordinates):
        changed_total[size + index] = (examples >> (index * task.count_bits)) & ((1 << task.count_bits) - 1)
    return changed_total


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("equal", [False, True])
def test_a_number_that_cannot_be_right_makes_the_step_no_other_than_one_that_might_be(bits: int, equal: bool) -> None:
    task, size, devices = changed(task_of(bits=bits, most=12), max_examples=100, equal=equal), 700, 5
    draws = np.random.default_rng(bits)
    # One of them has the longest values there are, so that a number below the right one makes an impossible mean.
    values = [np.full(size, 4.0), *(draws.normal(scale=0.3, size=size) for _ in range(devices - 1))]
    total = summed(
        [quantized(blocks(one.astype(np.float32)), size, 20, task, seed=seed) for seed, one in enumerate(values)]
    )
    honest = mean_of(total, devices, task)
    shortest = mean_of(told(total, devices if equal else devices * 100, task), devices, task)
    assert not doubt(total, devices, task)
    for lie in (1, devices - 1, devices + 1, devices * 100 + 1, (1 << COUNT_BITS) - 1):
        assert doubt(told(total, lie, task), devices, task)
        found = mean_of(told(total, lie, task), devices, task)
        assert np.array_equal(found, shortest)
        assert np.all(np.abs(found) <= np.abs(honest) * (1 + 1e-6))


@pytest.mark.parametrize("bits", [16, 32])
def test_a_false_number_of_a_sum_of_several_pieces_makes_the_shortest_step(bits: int) -> None:
    task, size = changed(task_of(bits=bits, most=12), max_examples=100), PIECE + 600
    total = quantized(blocks(np.full(size, 0.5, np.float32)), size, 100, task, seed=1)
    assert np.array_equal(mean_of(told(total, 999, task), 1, task), mean_of(total, 1, task))


@pytest.mark.parametrize("bits", [16, 32])
def test_values_under_a_mask_that_was_not_taken_off_make_no_model_whatever_the_number_says(bits: int) -> None:
    task, size = changed(task_of(bits=bits, most=12), max_examples=100), 512
    row = quantized(blocks(np.zeros(size, np.float32)), size, 20, task, seed=1)
    for seed in range(200):
        masked = row.copy()
        add_mask(masked, seed.to_bytes(SEED_BYTES, "big"), Expander(bits))
        with pytest.raises(AggregationError, match="nothing was made of it"):
            mean_of(masked, 1, task)
    # A mask on one piece alone, of the values or with the number, and a last piece of next to nothing but the number.
    for length, piece in ((PIECE + 512, 0), (PIECE + 512, 1), (PIECE, 1), (PIECE + 511, 1)):
        long = quantized(blocks(np.zeros(length, np.float32)), length, 20, task, seed=1)
        bad = long[span(piece, len(long))]
        np.add(bad, Expander(bits).piece(bytes(SEED_BYTES), 0, len(bad)), out=bad)
        with pytest.raises(AggregationError, match="nothing was made of it"):
            mean_of(told(long, 999, task), 1, task)
    # Too few values to tell, or a group, which can be left out.
    few = quantized(blocks(np.zeros(511, np.float32)), 511, 20, task, seed=1)
    for total, other in ((few, task), (row, changed(task, groups=2))):
        with pytest.raises(AggregationError, match="claims 999 examples"):
            mean_of(told(total, 999, task), 1, other)
