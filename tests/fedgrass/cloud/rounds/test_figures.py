"""Devices' own figures, averaged: against plain NumPy, and with a device that would decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.cloud.aggregator.device_evaluation import verdicts
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.figures import Claim, averaged
from fedgrass.protocol.records import Participation
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory

START = TokenRequest(round=1, token="job")
LOSSES = st.floats(-1e30, 1e30)


def evaluated(fleet: Fleet, thing: str, examples: int, **metrics: float) -> Any:
    return fleet.update(
        thing, status="evaluated", key=None, sha256=None, bytes=0, num_examples=examples, metrics=metrics
    )


def reference(claims: list[tuple[int, float, float]], checks: Checks) -> tuple[float, float, int]:
    """The rule as the documentation has it, in NumPy: of an even number the lower one in the middle is the median."""
    examples, losses, accuracies = (np.array(column, np.float64) for column in zip(*claims, strict=True))
    middle = (len(claims) - 1) // 2
    most = float(checks.max_examples)
    if checks.max_examples_over_median and len(claims) > 1:
        most = min(most, max(1, checks.max_examples_over_median * np.sort(examples)[middle]))
    weights = np.minimum(examples, most)
    if checks.clip_loss_over_median and len(claims) > 1:
        reach = checks.clip_loss_over_median * np.sort(np.abs(losses))[middle]
        losses = np.clip(losses, np.sort(losses)[middle] - reach, np.sort(losses)[middle] + reach)
    share = weights / weights.sum()
    return float(share @ losses), float(share @ accuracies), int(weights.sum())


@given(
    claims=st.lists(st.tuples(st.integers(1, 10**12), LOSSES, st.floats(0, 1)), min_size=1, max_size=40),
    checks=st.builds(
        Checks,
        max_examples=st.integers(1, 10**9),
        max_examples_over_median=st.sampled_from([0.0, 0.5, 3.0]),
        clip_loss_over_median=st.sampled_from([0.0, 1.0, 10.0]),
    ),
)
@settings(max_examples=200, deadline=None)
def test_means_are_those_of_a_plain_reference(claims: list[tuple[int, float, float]], checks: Checks) -> None:
    found, examples = averaged([Claim(n, {"loss": loss, "accuracy": acc}) for n, loss, acc in claims], checks)
    loss, accuracy, counted = reference(claims, checks)
    most = max(abs(claim[1]) for claim in claims)
    assert found["loss"] == pytest.approx(loss, rel=1e-9, abs=1e-12 * most)
    assert found["accuracy"] == pytest.approx(accuracy, rel=1e-9, abs=1e-12)
    assert abs(examples - counted) <= 1 + 1e-9 * counted


@pytest.mark.parametrize("lie", [{}, {"loss": 1e30, "accuracy": 0.0}, {"loss": -1e30, "accuracy": 1.0}])
def test_no_count_and_no_loss_of_one_device_of_twenty_decides_a_round_that_evaluates(
    make_fleet: FleetFactory, lie: dict[str, float]
) -> None:
    things = [f"d{number:02d}" for number in range(20)]
    fleet = make_fleet()
    fleet.heartbeats(*things)
    fleet.open(task="evaluate")
    honest = {"loss": 0.5, "accuracy": 0.9}
    for thing in things[1:]:
        assert record_update(fleet.services, evaluated(fleet, thing, 60, **honest)) == "counted"
    assert record_update(fleet.services, evaluated(fleet, things[0], 10**9, **{**honest, **lie})) == "counted"
    start_aggregation(fleet.services, START)
    record = fleet.round()
    assert (record.outcome, record.evaluated_examples) == ("evaluated", 1320)
    share = 3 / 22  # three times the median beside nineteen
    assert record.accuracy == pytest.approx(0.9 * (1 - share) + lie.get("accuracy", 0.9) * share)
    loss = min(max(lie.get("loss", 0.5), 0.5 - 5), 0.5 + 5)
    assert record.loss == pytest.approx(0.5 * (1 - share) + loss * share)


@pytest.mark.parametrize(("base_loss", "loss"), [(1e30, 0.0), (1e30, -1e30), (0.0, 1e30)])
def test_no_loss_of_one_device_decides_what_is_believed_of_a_new_model(base_loss: float, loss: float) -> None:
    def said(thing: str, examples: int, base_loss: float, loss: float) -> Participation:
        metrics = {"base_loss": base_loss, "loss": loss}
        fields = {"fleet": FLEET, "round": 1, "thing": thing, "judged_at": 1, "judged_examples": examples}
        return Participation.model_validate({**fields, "judged_metrics": metrics})

    honest = [said(f"d{number}", 60, base_loss=0.5, loss=2.0) for number in range(19)]
    found = verdicts([*honest, said("liar", 10**9, base_loss, loss)], Checks())
    assert found is not None
    for figures, true in zip(found, (0.5, 2.0), strict=True):
        assert abs(figures.loss - true) <= 10 * true * 3 / 22 + 1e-9
        assert figures.examples == 1320


def test_what_comes_late_is_none_of_the_figures(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    fleet.heartbeats("a", "b", "c")
    fleet.open(task="evaluate", quorum=0.5)
    for thing in "ab":
        record_update(fleet.services, evaluated(fleet, thing, 10, loss=1.0))
    start_aggregation(fleet.services, START)
    assert record_update(fleet.services, evaluated(fleet, "c", 30, loss=9.0)) == "late"
    start_aggregation(fleet.services, START)
    assert fleet.round().loss == pytest.approx(1.0)
    assert fleet.round().evaluated_examples == 20


def test_names_that_nobody_asked_for_cost_nothing() -> None:
    claims = [Claim(1, {"loss": 1.0, **{f"{thing}-{n}": 1.0 for n in range(15)}}) for thing in range(20_000)]
    assert averaged(claims, Checks())[0] == {"loss": pytest.approx(1.0)}
