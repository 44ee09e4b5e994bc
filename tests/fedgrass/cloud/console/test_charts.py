"""A chart's geometry: everything is inside, the scale is round, and a gap stays a gap."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from fedgrass.cloud.console import charts

VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))


@given(st.integers(1, 900_000), st.lists(VALUES, min_size=2, max_size=60))
@example(1, [0.0, 5e-324])
@example(1, [1e6, math.nextafter(1e6, 0)])
@example(1, [1e-291, 2e-290])
@example(1, [1.0, 1.0 + 2e-9])
def test_every_point_and_mark_is_inside_the_frame(first: int, values: list[float | None]) -> None:
    chart = charts.line("Loss", list(enumerate(values, first)))
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        assert chart is None
        return
    assert chart is not None
    assert len(chart.points) == len(known)
    assert all(chart.left <= point.x <= chart.right for point in chart.points)
    assert all(chart.top <= point.y <= chart.bottom for point in chart.points)
    assert 2 <= len(chart.up) <= 7
    assert len(chart.across) <= 9
    assert {chart.up[0].at, chart.up[-1].at} == {chart.bottom, chart.top}


def test_a_round_without_a_value_is_a_gap() -> None:
    chart = charts.line("Accuracy", [(1, 0.5), (2, None), (3, 0.7), (4, 0.8)], percent=True)
    assert chart is not None
    assert chart.path.count("M") == 2
    assert chart.path.count("L") == 1
    assert chart.points[-1].says == "Round 4: 80 %"
    assert chart.summary == "50 % in round 1, 80 % in round 4"


def test_shares_have_round_percentages() -> None:
    chart = charts.line("Accuracy", [(1, 0.62), (2, 0.97)], percent=True)
    assert chart is not None
    assert [tick.word for tick in chart.up] == ["60 %", "70 %", "80 %", "90 %", "100 %"]


def test_shares_that_are_all_whole_have_nothing_above_them() -> None:
    chart = charts.line("Devices", [(1, 1.0), (2, 1.0)], percent=True)
    assert chart is not None
    assert [tick.word for tick in chart.up] == ["90 %", "95 %", "100 %"]
