"""What devices report of their training, as one figure for a round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.protocol.reported import reported

FIGURES = st.floats(-1e300, 1e300)


@given(st.lists(st.tuples(st.integers(1, 10**6), FIGURES), min_size=1, max_size=20))
def test_it_is_the_mean_by_examples(pairs: list[tuple[int, float]]) -> None:
    found = reported((examples, {"my_score": value}) for examples, value in pairs)
    counts, values = zip(*pairs, strict=True)
    largest = max(map(abs, values))
    assert found["my_score"] == pytest.approx(np.average(values, weights=counts), rel=1e-9, abs=1e-9 * largest)


def test_a_name_that_few_devices_make_up_is_none_and_what_strategies_weigh_by_neither() -> None:
    honest = [(10, {"loss": 0.5, "steps": 9.0}) for _ in range(5)]
    made_up = [(10, {"loss": 0.5, **{f"cost_{number}": 1.0 for number in range(100)}}) for _ in range(5)]
    assert reported([*honest, *made_up]) == {"loss": pytest.approx(0.5)}


def test_figures_are_few_and_finite() -> None:
    many = {f"figure_{number:02d}": float(number) for number in range(40)}
    found = reported([(1, {**many, "a": float("nan"), "b": float("inf")}), (1, many)])
    assert list(found) == [f"figure_{number:02d}" for number in range(16)]
    assert reported([]) == {}
    assert reported([(0, {"loss": 1.0})]) == {}
