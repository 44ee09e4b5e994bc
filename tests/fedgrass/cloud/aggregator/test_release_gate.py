from __future__ import annotations

import pytest

from fedgrass.cloud.aggregator.release_gate import Verdict, decided, judge, judge_by, raised
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.release_settings import Gate
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


GATE = Gate()


def test_small_falls_that_each_pass_add_up_to_a_hold() -> None:
    """0.95 to 0.29 in 33 steps of 0.02 went out, each of them."""
    accuracy, best, holds = 0.95, raised(None, figures(0.95), "a"), []
    for _ in range(33):
        verdict = judge_by(GATE, figures(accuracy), figures(accuracy - 0.02), best)
        if not verdict.passed:
            holds.append(verdict)
            continue
        accuracy -= 0.02
        best = raised(best, figures(accuracy), "a")
    assert accuracy >= 0.95 - GATE.below_best - 1e-9
    assert {verdict.hold for verdict in holds} == {"best_accuracy"}
    assert "0.9500" in holds[0].reason


def test_a_loss_that_climbs_is_held_though_the_accuracy_stays() -> None:
    """2.3 to 59 went out, as long as the accuracy stayed."""
    assert judge_by(GATE, figures(0.5, 2.3), figures(0.5, 59.0)).hold == "loss"
    loss, best = 2.3, raised(None, figures(0.5, 2.3), "a")
    for _ in range(100):
        if judge_by(GATE, figures(0.5, loss), figures(0.5, loss * 1.1), best).passed:
            loss *= 1.1
            best = raised(best, figures(0.5, loss), "a")
    assert loss <= 2.3 * (1 + GATE.loss_tolerance)
    assert judge_by(GATE, figures(0.5, loss), figures(0.5, loss * 1.1), best).hold == "best_loss"
    assert judge_by(GATE, figures(0.99, 0.01), figures(0.99, 0.05), raised(None, figures(0.99, 0.01), "a")).passed


@pytest.mark.parametrize(("new", "hold"), [(1.01, None), (1.03, "loss"), (0.99, None)])
def test_a_regression_is_held_against_its_lowest_loss(new: float, hold: str | None) -> None:
    best = raised(None, figures(None, 1.0), "a")
    assert judge_by(GATE, figures(None, 1.0), figures(None, new), best).hold == hold
    assert judge_by(GATE, figures(None, 1.05), figures(None, 1.06), best).hold == "best_loss"


def test_the_best_is_of_one_evaluation_set_and_of_each_figure_by_itself() -> None:
    best = raised(raised(None, figures(0.9, 0.5), "a"), figures(0.8, 0.4), "a")
    assert (best.accuracy, best.loss) == (0.9, 0.4)
    other = raised(best, figures(0.7, 0.6), "b")
    assert (other.evaluation_set, other.accuracy, other.loss) == ("b", 0.7, 0.6)


def watched(loss: float = 1.0, **metrics: float) -> Evaluation:
    return Evaluation(loss=loss, accuracy=0.9, metrics=metrics, examples=10)


@pytest.mark.parametrize(
    ("metric", "before", "after", "passed"),
    [
        ("f1", 0.80, 0.79, True),
        ("f1", 0.80, 0.77, False),
        ("auc", 0.80, 0.90, True),
        ("recall", 0.80, 0.70, False),
        ("r2", 0.80, 0.78, True),
        ("r2", 0.80, 0.77, False),
        ("rmse", 10.0, 10.2, True),
        ("rmse", 10.0, 10.3, False),
        ("mae", 10.0, 5.0, True),
        ("mae", 0.0, 0.1, False),
    ],
)
def test_the_gate_watches_the_figure_that_it_names_and_knows_which_way_it_is_better(
    metric: str, before: float, after: float, passed: bool
) -> None:
    gate = Gate.model_validate({"metric": metric})
    base, new = watched(**{metric: before}), watched(**{metric: after})
    verdict = judge_by(gate, base, new)
    assert (verdict.passed, verdict.hold) == (passed, None if passed else "metric")
    assert metric in verdict.reason
    better = decided(FleetSettings(gate=gate, release="on_improvement"), 1, Verdict(True, ""), base, new)[0]
    assert (better == "released") is (after < before if metric in ("rmse", "mae") else after > before)


def test_the_accuracy_does_not_hold_a_model_whose_watched_figure_rose() -> None:
    base = Evaluation(loss=1.0, accuracy=0.99, metrics={"f1": 0.1}, examples=10)
    new = Evaluation(loss=1.0, accuracy=0.90, metrics={"f1": 0.6}, examples=10)
    assert judge_by(Gate(metric="f1"), base, new).passed
    assert not judge_by(Gate(), base, new).passed


def test_a_figure_that_the_evaluation_lacks_holds_the_model_and_says_what_there_is() -> None:
    verdict = judge_by(Gate(metric="auc"), watched(f1=0.5), watched(f1=0.6))
    assert (verdict.passed, verdict.hold) == (False, "metric")
    assert "auc" in verdict.reason
    assert "f1" in verdict.reason
    assert judge_by(Gate(metric="auc"), watched(f1=0.5), watched(auc=0.6)).passed


def test_falls_of_a_watched_figure_that_add_up_are_held_by_the_best() -> None:
    best = raised(None, watched(f1=0.9, rmse=1.0, auc_error=0.1), "set")
    assert "auc_error" not in best.metrics
    best = raised(best, watched(f1=0.8, rmse=2.0), "set")
    assert best.metrics == {"f1": 0.9, "rmse": 1.0}
    verdict = judge_by(Gate(metric="f1"), watched(f1=0.85), watched(f1=0.84), best)
    assert (verdict.passed, verdict.hold) == (False, "best_metric")
    verdict = judge_by(Gate(metric="rmse"), watched(rmse=1.05), watched(rmse=1.06), best)
    assert (verdict.passed, verdict.hold) == (False, "best_metric")
    assert judge_by(Gate(metric="rmse"), watched(rmse=1.04), watched(rmse=1.05), best).passed


def test_a_loss_that_explodes_is_held_whatever_figure_is_watched() -> None:
    verdict = judge_by(Gate(metric="f1"), watched(1.0, f1=0.5), watched(2.0, f1=0.6))
    assert (verdict.passed, verdict.hold) == (False, "loss")


def test_a_figure_that_no_gate_knows_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"gate\.metric"):
        FleetSettings().overridden({"gate": {"metric": "f2"}})
