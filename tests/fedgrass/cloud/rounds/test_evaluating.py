"""Rounds that evaluate: the current model on every device's own examples, without a job and without a change."""

from __future__ import annotations

from typing import Any

import pytest

from fedgrass.cloud.rounds.close_round import CloseRequest, close_round
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_state
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

START = TokenRequest(round=1, token="job")


def evaluated(fleet: Fleet, thing: str, examples: int, number: int = 1, **metrics: float) -> Any:
    return fleet.update(
        thing, number, status="evaluated", key=None, sha256=None, bytes=0, num_examples=examples, metrics=metrics
    )


def test_figures_are_weighted_by_examples_and_the_model_stays(fleet: Fleet) -> None:
    fleet.open(task="evaluate", checks={"max_examples": 300}, privacy={"mode": "central"})
    assert Announcement.decode(fleet.announcement or b"").task == "evaluate"
    assert record_update(fleet.services, evaluated(fleet, "a", 100, loss=1.0, accuracy=0.5)) == "counted"
    assert record_update(fleet.services, evaluated(fleet, "a", 100, loss=1.0, accuracy=0.5)) == "duplicate"
    assert record_update(fleet.services, evaluated(fleet, "b", 100, loss=0.5, accuracy=0.9)) == "counted"
    assert record_update(fleet.services, evaluated(fleet, "c", 10**9, loss=0.1, accuracy=1.0)) == "counted"
    start_aggregation(fleet.services, START)
    assert fleet.sagemaker.jobs == {}
    assert fleet.step_functions.answers["job"] == ("success", {"job": "not_needed"})
    closed = close_round(fleet.services, CloseRequest(round=1, rounds=1))
    assert closed["results"][0]["outcome"] == "evaluated"
    record = fleet.round()
    assert record.accuracy == pytest.approx((0.5 * 100 + 0.9 * 100 + 1.0 * 300) / 500)
    assert record.loss == pytest.approx((1.0 * 100 + 0.5 * 100 + 0.1 * 300) / 500)
    assert record.reason == "model 1.0.0 on 500 examples of 3 devices"
    assert record.privacy is None
    state = load_state(fleet.rounds, FLEET)
    assert state.model is not None
    assert state.model.version == "1.0.0"


def test_a_model_without_an_accuracy_has_a_loss_only(fleet: Fleet) -> None:
    fleet.open(task="evaluate")
    for thing in "abc":
        record_update(fleet.services, evaluated(fleet, thing, 3, loss=1 / 3))
    start_aggregation(fleet.services, START)
    assert fleet.round().accuracy is None
    assert fleet.round().loss == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("examples", "metrics"),
    [(0, {"loss": 1.0}), (5, {}), (5, {"accuracy": 0.5}), (5, {"loss": 1.0, "accuracy": 1.5}), (5, {"loss": 1e300})],
)
def test_figures_that_cannot_be_are_not_counted(fleet: Fleet, examples: int, metrics: dict[str, Any]) -> None:
    fleet.open(task="evaluate")
    assert record_update(fleet.services, evaluated(fleet, "a", examples, **metrics)) == "ignored"
    assert fleet.round().uploaded == 0


def test_an_answer_to_the_other_task_is_not_counted(fleet: Fleet) -> None:
    fleet.open(task="evaluate")
    assert record_update(fleet.services, fleet.update("a")) == "ignored"
    fleet.step_functions.statuses.clear()  # the execution is gone: the next one takes over
    fleet.open("arn:other")
    assert record_update(fleet.services, evaluated(fleet, "a", 5, number=2, loss=1.0)) == "ignored"
    assert fleet.round(2).uploaded == 0


def test_too_few_figures_are_no_evaluation(fleet: Fleet) -> None:
    fleet.open(task="evaluate")
    record_update(fleet.services, evaluated(fleet, "a", 5, loss=1.0))
    start_aggregation(fleet.services, START)
    assert (fleet.round().outcome, fleet.round().loss) == ("insufficient_updates", None)


def test_devices_that_hide_their_updates_are_not_asked_for_exact_figures() -> None:
    with pytest.raises(ConfigurationError, match="exact figures"):
        FleetSettings().overridden({"task": "evaluate", "privacy": {"mode": "local"}})
