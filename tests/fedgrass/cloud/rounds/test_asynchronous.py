"""Rounds that never wait: an update completes the round that is open when it comes, whatever its own round is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from fedgrass.cloud.ending.finish import finish
from fedgrass.cloud.ending.outcome import decide, end
from fedgrass.cloud.rounds.await_updates import await_updates
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.names import update_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Outcome, QuarantinedEntry, UpdateEntry
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory

STREAM = {"mode": "asynchronous", "buffer_size": 2, "min_updates": 1, "deadline_seconds": 60}
FEDBUFF = {"name": "fedbuff", "options": {"staleness": 2}}


@pytest.fixture
def fleet(make_fleet: FleetFactory) -> Fleet:
    fleet: Fleet = make_fleet()
    fleet.heartbeats(*"abcd")
    return fleet


def begin(fleet: Fleet, **more: Any) -> RoundRecord:
    overrides: dict[str, Any] = {**STREAM, "strategy": FEDBUFF, **more}
    return fleet.open(**overrides)


def wait(fleet: Fleet, number: int) -> None:
    await_updates(fleet.services, TokenRequest(round=number, token=f"collect {number}"))


def goes_on(fleet: Fleet, number: int) -> bool:
    return f"collect {number}" in fleet.step_functions.answers


def entry(number: int, thing: str, own: int) -> UpdateEntry:
    return UpdateEntry(
        thing=thing,
        key=update_key(FLEET, own, thing),
        etag="e",
        bytes=1,
        num_examples=1,
        weight=1.0,
        norm=1.0,
        late_for=own if own != number else None,
    )


def aggregate(fleet: Fleet, number: int, *used: tuple[str, int], outcome: Outcome = "held") -> None:
    """End the collecting, and let the job combine updates: (thing, the round it is for)."""
    start_aggregation(fleet.services, TokenRequest(round=number, token=f"job {number}"))
    conclude(fleet, number, *used, outcome=outcome)


def conclude(fleet: Fleet, number: int, *used: tuple[str, int], outcome: Outcome = "held") -> None:
    updates = tuple(entry(number, thing, own) for thing, own in used)
    report = fleet.write_report(outcome, number, updates=updates)
    decide(fleet.rounds, fleet.round(number), report)
    finish(fleet.services.place, fleet.round(number))
    close(fleet.services, number)


def test_an_update_of_an_earlier_round_completes_the_open_one_and_is_counted_once(fleet: Fleet) -> None:
    begin(fleet)
    announced = json.loads(fleet.announcement or b"")
    assert (announced["max_age"], announced["round"]) == (2, 1)
    wait(fleet, 1)
    record_update(fleet.services, fleet.update("a"))
    assert not goes_on(fleet, 1)
    aggregate(fleet, 1, ("a", 1))
    begin(fleet)
    wait(fleet, 2)
    assert record_update(fleet.services, fleet.update("b", 1)) == "late"
    assert not goes_on(fleet, 2)
    # Told twice, and declined before: still one update.
    assert record_update(fleet.services, fleet.update("b", 1)) in ("late", "duplicate")
    assert not goes_on(fleet, 2)
    assert record_update(fleet.services, fleet.update("c", 2)) == "counted"
    assert goes_on(fleet, 2)
    aggregate(fleet, 2, ("b", 1), ("c", 2))
    third = begin(fleet)
    assert updates_at_hand(fleet.rounds, third) == 0


@pytest.mark.parametrize("phase", ["aggregating", "closed"])
def test_what_comes_between_two_rounds_is_at_hand_when_the_next_one_opens(fleet: Fleet, phase: str) -> None:
    begin(fleet)
    wait(fleet, 1)
    record_update(fleet.services, fleet.update("a"))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job 1"))
    if phase == "closed":
        conclude(fleet, 1, ("a", 1))
    for thing in "bc":
        assert record_update(fleet.services, fleet.update(thing, 1)) == "late"
    if phase == "aggregating":
        conclude(fleet, 1, ("a", 1), ("b", 1))  # the job listed b's although the notice of it came later
    second = begin(fleet)
    assert updates_at_hand(fleet.rounds, second) == (2 if phase == "closed" else 1)
    wait(fleet, 2)
    assert goes_on(fleet, 2) == (phase == "closed")


def test_whatever_order_token_notices_and_repetitions_come_in_the_last_one_completes_the_round(fleet: Fleet) -> None:
    steps: dict[str, Callable[[int], object]] = {
        "token": lambda number: wait(fleet, number),
        "late": lambda number: record_update(fleet.services, fleet.update("b", number - 1)),
        "own": lambda number: record_update(fleet.services, fleet.update("a", number)),
    }
    begin(fleet)
    aggregate_nothing(fleet, 1)
    number = 1
    for order in itertools.permutations(steps):
        number += 1
        begin(fleet)
        done: set[str] = set()
        for step in order:
            assert not goes_on(fleet, number), (order, step)
            steps[step](number)
            done.add(step)
            if "late" in done:
                steps["late"](number)  # told twice
        assert goes_on(fleet, number), order
        aggregate(fleet, number, ("a", number), ("b", number - 1))


def aggregate_nothing(fleet: Fleet, number: int) -> None:
    end(fleet.rounds, fleet.round(number), "cancelled", "")
    close(fleet.services, number)


def test_updates_of_a_round_that_came_to_nothing_are_at_hand_for_the_next_until_they_are_too_old(fleet: Fleet) -> None:
    begin(fleet, min_updates=2)
    record_update(fleet.services, fleet.update("a"))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job 1"))
    assert fleet.round(1).outcome == "insufficient_updates"
    close(fleet.services, 1)
    second = begin(fleet, min_updates=2)
    assert updates_at_hand(fleet.rounds, second) == 1
    wait(fleet, 2)
    record_update(fleet.services, fleet.update("b", 2))
    assert goes_on(fleet, 2)
    # Enough with the one that waited: the job is started, and not ended for want of updates.
    start_aggregation(fleet.services, TokenRequest(round=2, token="job 2"))
    assert fleet.round(2).outcome is None
    aggregate_nothing(fleet, 2)
    third = begin(fleet, min_updates=2)
    assert updates_at_hand(fleet.rounds, third) == 2
    aggregate_nothing(fleet, 3)
    assert updates_at_hand(fleet.rounds, begin(fleet, min_updates=2)) == 1  # round 1 is beyond staleness 2


def test_a_refused_update_has_had_its_turn_and_a_repeated_one_takes_nothing_from_others(fleet: Fleet) -> None:
    begin(fleet)
    record_update(fleet.services, fleet.update("a"))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job 1"))
    key = update_key(FLEET, 1, "a")
    bad = QuarantinedEntry(thing="a", key=key, bytes=1, reason="wrong_base", detail="")
    for thing in "bc":
        record_update(fleet.services, fleet.update(thing, 1))
    report = fleet.write_report("insufficient_updates", 1, updates=(), model=None, quarantined=(bad,))
    decide(fleet.rounds, fleet.round(1), report)
    finish(fleet.services.place, fleet.round(1))
    close(fleet.services, 1)
    assert fleet.round(1).took == {1: 1}
    second = begin(fleet)
    assert updates_at_hand(fleet.rounds, second) == 2
    again = bad.model_copy(update={"reason": "replayed", "late_for": 1})
    report = fleet.write_report("held", 2, updates=(entry(2, "b", 1),), quarantined=(again,))
    start_aggregation(fleet.services, TokenRequest(round=2, token="job 2"))
    decide(fleet.rounds, fleet.round(2), report)
    finish(fleet.services.place, fleet.round(2))
    close(fleet.services, 2)
    assert updates_at_hand(fleet.rounds, begin(fleet)) == 1


def test_a_round_ends_when_all_that_were_asked_have_answered_although_there_are_fewer_than_wanted(fleet: Fleet) -> None:
    begin(fleet, buffer_size=50)
    wait(fleet, 1)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    record_update(fleet.services, fleet.update("d", status="declined", key=None))
    assert goes_on(fleet, 1)


def test_rounds_that_wait_go_by_their_own_updates_only(fleet: Fleet) -> None:
    fleet.open(min_updates=1)
    record_update(fleet.services, fleet.update("a"))
    aggregate(fleet, 1, ("a", 1))
    second = fleet.open(min_updates=1, strategy=FEDBUFF)
    wait(fleet, 2)
    for thing in "bcd":
        record_update(fleet.services, fleet.update(thing, 1))
    assert updates_at_hand(fleet.rounds, second) == 0
    assert not goes_on(fleet, 2)
    assert json.loads(fleet.announcement or b"").get("max_age", 0) == 0
