from __future__ import annotations

import pytest

from cloud.aggregator.gate import Verdict, decided, judge
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.settings import FleetSettings


def figures(accuracy: float | None, loss: float = 1.0) -> Evaluation:
    return Evaluation(loss=loss, accuracy=accuracy, examples=10)


@pytest.mark.parametrize(
    ("base", "new", "tolerance", "passed"),
    [
        (0.90, 0.95, 0.0, True),
        (0.90, 0.90, 0.0, True),
        (0.90, 0.8999, 0.0, False),
        (0.90, 0.88, 0.02, True),
        (0.90, 0.8799, 0.02, False),
        (0.90, 0.0, 1.0, True),
    ],
)
def test_accuracy_may_fall_by_the_tolerance_and_no_more(
    base: float, new: float, tolerance: float, passed: bool
) -> None:
    verdict = judge(figures(base), figures(new), tolerance=tolerance)
    assert verdict.passed is passed
    assert f"{new:.4f}" in verdict.reason


@pytest.mark.parametrize(("new", "passed"), [(0.5, True), (1.0, True), (1.1, True), (1.11, False)])
def test_without_accuracy_the_loss_may_rise_by_that_fraction(new: float, passed: bool) -> None:
    assert judge(figures(None, 1.0), figures(None, new), tolerance=0.1).passed is passed


def test_without_an_evaluation_set_everything_passes_and_it_is_said() -> None:
    verdict = judge(None, None, tolerance=0.0)
    assert verdict.passed
    assert "no evaluation set" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "number", "new", "outcome"),
    [
        ({}, 1, 0.9, "released"),
        ({"release": "never"}, 1, 0.9, "held"),
        ({"release": "on_improvement"}, 1, 0.9, "held"),
        ({"release": "on_improvement"}, 1, 0.91, "released"),
        ({"release_every": 5}, 4, 0.91, "advanced"),
        ({"release_every": 5}, 5, 0.91, "released"),
        ({"release_every": 5, "release": "on_improvement"}, 4, 0.9, "advanced"),
        ({"release_every": 5, "release": "on_improvement"}, 5, 0.9, "held"),
    ],
)
def test_a_model_that_passes_goes_as_far_as_the_settings_say(
    changes: dict[str, object], number: int, new: float, outcome: str
) -> None:
    settings = FleetSettings().overridden(changes)
    found, reason = decided(settings, number, Verdict(True, "passed"), figures(0.9), figures(new))
    assert found == outcome
    assert ("round 5" in reason) == (outcome == "advanced")
    assert decided(settings, number, Verdict(False, "worse"), figures(0.9), figures(new)) == ("held", "worse")
