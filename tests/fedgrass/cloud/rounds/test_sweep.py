"""What an execution or a person that is gone has left is ended on a schedule too, not only by the next opening."""

from __future__ import annotations

import pytest

from fedgrass.cloud.rounds.open_round import sweep
from fedgrass.protocol.fleet_state import HandLock
from fedgrass.protocol.tables import load_state, take_hand
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fedgrass.cloud.rounds.harness import EXECUTION, FLEET, Fleet


@pytest.mark.parametrize(
    ("status", "outcome"), [("ABORTED", "cancelled"), ("FAILED", "failed"), ("TIMED_OUT", "failed"), (None, "failed")]
)
def test_a_round_whose_execution_ended_unheard_is_closed_and_no_more_announced(
    fleet: Fleet, status: str | None, outcome: str
) -> None:
    fleet.open()
    fleet.step_functions.statuses.clear()
    if status is not None:
        fleet.step_functions.statuses[EXECUTION] = status
    for _ in range(2):
        sweep(fleet.services)
        assert (fleet.round().phase, fleet.round().outcome, fleet.open_round) == ("closed", outcome, None)
        assert fleet.announcement is None
    assert "without closing it" in fleet.round().reason


@pytest.mark.parametrize("status", ["RUNNING", "PENDING_REDRIVE"])
def test_a_round_that_goes_on_is_left_alone(fleet: Fleet, status: str) -> None:
    record = fleet.open()
    fleet.step_functions.statuses[EXECUTION] = status
    published = len(fleet.iot.published)
    sweep(fleet.services)
    assert fleet.round() == record
    assert fleet.open_round == 1
    assert len(fleet.iot.published) == published


def test_an_execution_that_ended_between_two_rounds_keeps_nobody_out(fleet: Fleet) -> None:
    key = {"fleet": FLEET, "key": "state"}
    fleet.rounds.update_item(
        Key=key, UpdateExpression="SET reserved = :one", ExpressionAttributeValues={":one": EXECUTION}
    )
    sweep(fleet.services)
    assert load_state(fleet.rounds, FLEET).reserved == EXECUTION, "it runs"
    fleet.step_functions.statuses[EXECUTION] = "ABORTED"
    sweep(fleet.services)
    assert load_state(fleet.rounds, FLEET).reserved is None


def test_a_person_who_is_gone_holds_the_fleet_no_longer_than_was_said(fleet: Fleet) -> None:
    fleet.services.__dict__["greengrass"] = FakeGreengrass()
    now = int(fleet.now.timestamp())
    lock = HandLock(action="release", version="1.0.0", holder="one", until=now + 900)
    assert take_hand(fleet.rounds, FLEET, lock, now)
    sweep(fleet.services)
    assert load_state(fleet.rounds, FLEET).hand == lock
    fleet.pass_time(901)
    sweep(fleet.services)
    assert load_state(fleet.rounds, FLEET).hand is None


def test_a_fleet_without_anything_is_left_alone(fleet: Fleet) -> None:
    before = load_state(fleet.rounds, FLEET)
    sweep(fleet.services)
    assert load_state(fleet.rounds, FLEET) == before
    assert fleet.iot.published == []
