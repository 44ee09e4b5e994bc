"""What changes over a run's rounds, and when a run is over, against closed forms and a plain search."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.run_settings import Curve, Run, Until, why_over
from fedgrass.protocol.settings import FleetSettings


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ({}, [0.8, 0.8, 0.8, 0.8, 0.8]),
        ({"kind": "step", "rounds": 2, "factor": 0.5}, [0.8, 0.8, 0.4, 0.4, 0.2]),
        ({"kind": "exponential", "rounds": 2, "factor": 0.25}, [0.8, 0.4, 0.2, 0.1, 0.05]),
        (
            {"kind": "cosine", "rounds": 4, "factor": 0.5},
            [0.8, 0.6 + 0.2 / math.sqrt(2), 0.6, 0.6 - 0.2 / math.sqrt(2), 0.4],
        ),
        ({"kind": "exponential", "rounds": 1, "factor": 0.5, "least": 0.15}, [0.8, 0.4, 0.2, 0.15, 0.15]),
        ({"kind": "exponential", "rounds": 1, "factor": 2.0, "most": 2.0}, [0.8, 1.6, 2.0, 2.0, 2.0]),
    ],
)
def test_a_curve_is_its_closed_form_within_its_bounds(curve: dict[str, Any], wanted: list[float]) -> None:
    found = [Curve(**curve).at(0.8, done) for done in range(5)]
    assert found == pytest.approx(wanted)
    # A cosine stays where it came to.
    assert Curve(kind="cosine", rounds=4, factor=0.5).at(0.8, 10**9) == pytest.approx(0.4)


def test_a_rounds_values_are_those_of_its_place_in_the_run() -> None:
    settings = FleetSettings().overridden(
        {
            "fit": {"learning_rate": 0.8, "epochs": 5},
            "schedule": {
                "learning_rate": {"kind": "step", "rounds": 1, "factor": 0.5},
                "epochs": {"kind": "step", "rounds": 1, "factor": 0.5},
            },
        }
    )
    fits = [settings.at_round(number, 7).fit for number in range(7, 12)]
    assert [fit.learning_rate for fit in fits] == [0.8, 0.4, 0.2, 0.1, 0.05]
    assert [fit.epochs for fit in fits] == [5, 3, 1, 1, 1]
    since = settings.overridden({"schedule": {"since": 9}})
    assert [since.at_round(number, number).fit.learning_rate for number in (8, 9, 10)] == [0.8, 0.8, 0.4]
    assert settings.at_round(7, 7) is settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schedule": {"learning_rate": {"kind": "step"}}}, "fit.learning_rate"),
        ({"schedule": {"epochs": {"kind": "linear"}}}, "schedule.epochs.kind"),
        ({"schedule": {"epochs": {"factor": 0}}}, "schedule.epochs.factor"),
        ({"schedule": {"epochs": {"least": 3, "most": 2}}}, "most"),
        ({"until": {"metric": "nothing"}}, "until.metric"),
        ({"until": {"patience": -1}}, "until.patience"),
    ],
)
def test_what_no_run_could_go_by_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        FleetSettings().overridden(changes)


@pytest.mark.parametrize(
    ("until", "metric", "values", "hours", "named"),
    [
        ({"target": 0.9}, "accuracy", [0.5, 0.9], 1, "until.target"),
        ({"target": 0.9}, "accuracy", [0.95, 0.89], 1, ""),
        ({"target": 0.9}, "accuracy", [0.95, None], 1, "until.target"),  # what was held changed nothing
        ({"target": 0.3}, "loss", [0.5, 0.31], 1, ""),
        ({"target": 0.3}, "loss", [0.5, 0.3], 1, "until.target"),
        ({"target": 0.3}, "loss", [None], 1, ""),
        ({"patience": 2}, "loss", [0.5, 0.6, 0.5], 1, "until.patience"),
        ({"patience": 2}, "loss", [0.5, 0.6, 0.49], 1, ""),
        ({"patience": 2, "min_gain": 0.05}, "loss", [0.5, 0.6, 0.49], 1, "until.patience"),
        ({"patience": 2}, "accuracy", [None, None], 1, "until.patience"),
        ({"hours": 2.0}, "accuracy", [0.5], 1.99, ""),
        ({"hours": 2.0}, "accuracy", [0.5], 2.0, "until.hours"),
        ({}, "accuracy", [0.5] * 100, 1e9, ""),
    ],
)
def test_a_run_is_over_for_a_reason_that_is_named(
    until: dict[str, Any], metric: str, values: list[float | None], hours: float, named: str
) -> None:
    found = why_over(Until(**until), metric, values, hours)
    assert (named in found) if named else not found


@given(st.lists(st.one_of(st.none(), st.integers(0, 5).map(float)), min_size=1, max_size=12), st.integers(1, 4))
def test_patience_is_the_rounds_since_the_first_of_the_best(values: list[float | None], patience: int) -> None:
    known = [value for value in values if value is not None]
    place = values.index(max(known)) if known else -1
    over = len(values) - 1 - place >= patience
    assert bool(why_over(Until(patience=patience), "accuracy", values, 0.0)) == over


@given(
    st.sampled_from(["loss", "accuracy"]),
    st.lists(st.one_of(st.none(), st.integers(0, 5).map(float)), min_size=1, max_size=12),
    st.fixed_dictionaries({"patience": st.integers(0, 4), "target": st.one_of(st.none(), st.integers(0, 6))}),
)
def test_a_run_that_goes_on_elsewhere_after_each_round_is_over_where_it_would_be(
    metric: str, values: list[float | None], ends: dict[str, Any]
) -> None:
    until, run = Until(**ends), Run(first=7, started_at=datetime(2026, 1, 1, tzinfo=timezone.utc))
    for number, value in enumerate(values, 1):
        standing = run.standing.after(metric, value, until.min_gain)
        # As an execution's input, which is all that the next one is given.
        run = Run.model_validate_json(run.model_copy(update={"standing": standing}).model_dump_json(exclude_none=True))
        assert run.standing.why_over(until, 0.0) == why_over(until, metric, values[:number], 0.0)
        assert run.standing.done == number
