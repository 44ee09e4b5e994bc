"""Nobody waits for a device whose trainer does not run; one whose trainer is back counts as asked again."""

from __future__ import annotations

from typing import Any

import pytest

from fedgrass.cloud.rounds.await_updates import await_updates
from fedgrass.cloud.rounds.missing import trainer_is_gone
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import RoundRefusedError
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.waiting import waiting_for
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

GONE: dict[str, Any] = {"able": False, "trainer_runs": False, "reason": "the trainer does not run (died 12 s ago)"}
TOKEN = TokenRequest(round=1, token="collect")


def gone(fleet: Fleet, thing: str, *, table: bool = True, **fields: Any) -> None:
    """What the rules do with a device's heartbeat; the table's may come after the function's."""
    said = {**GONE, **fields}
    if table:
        fleet.heartbeats(thing, **said)
    beat = Heartbeat(fleet=FLEET, thing=thing, sent_at=fleet.now, interval_seconds=30, **said)
    trainer_is_gone(fleet.services, fleet.delivery(thing, "heartbeat", beat))


def collecting(fleet: Fleet) -> Fleet:
    fleet.open()
    await_updates(fleet.services, TOKEN)
    return fleet


def ended(fleet: Fleet) -> bool:
    return "collect" in fleet.step_functions.answers


@pytest.mark.parametrize("table", [True, False])
def test_the_heartbeat_of_the_last_missing_device_ends_the_collecting(fleet: Fleet, table: bool) -> None:
    collecting(fleet)
    for thing in "ab":
        record_update(fleet.services, fleet.update(thing))
    assert not ended(fleet)
    gone(fleet, "c", table=table)
    assert fleet.step_functions.answers["collect"] == ("success", {"uploaded": 2})


def test_the_last_answer_ends_it_when_the_others_are_gone(fleet: Fleet) -> None:
    collecting(fleet)
    gone(fleet, "c")
    gone(fleet, "b")
    assert not ended(fleet)
    waiting = waiting_for(fleet.rounds, fleet.services.devices, fleet.round())
    assert [(one.thing, one.gone) for one in waiting] == [("a", False), ("b", True), ("c", True)]
    record_update(fleet.services, fleet.update("a"))
    assert ended(fleet)


def test_a_device_whose_trainer_is_back_is_waited_for_again(fleet: Fleet) -> None:
    collecting(fleet)
    gone(fleet, "c")
    fleet.pass_time(5)
    fleet.heartbeats("c")
    for thing in "ab":
        record_update(fleet.services, fleet.update(thing))
    assert not ended(fleet)
    record_update(fleet.services, fleet.update("c"))
    assert fleet.step_functions.answers["collect"] == ("success", {"uploaded": 3})


def test_one_that_is_busy_or_silent_is_waited_for(fleet: Fleet) -> None:
    collecting(fleet)
    gone(fleet, "b")
    fleet.heartbeats("c", able=False, reason="the application is busy")
    record_update(fleet.services, fleet.update("a"))
    fleet.pass_time(600)
    record_update(fleet.services, fleet.update("a"))
    assert not ended(fleet)


def test_one_that_has_answered_may_die(fleet: Fleet) -> None:
    collecting(fleet)
    record_update(fleet.services, fleet.update("a"))
    gone(fleet, "a")
    assert not ended(fleet)


def test_strangers_and_rounds_that_do_not_collect_are_left_alone(fleet: Fleet) -> None:
    gone(fleet, "c")  # no round is open
    fleet.heartbeats("c")
    collecting(fleet)
    gone(fleet, "stranger")
    trainer_is_gone(fleet.services, fleet.delivery("c", "heartbeat", b"{"))
    speaks_for_another = Heartbeat(fleet=FLEET, thing="b", sent_at=fleet.now, interval_seconds=30, **GONE)
    trainer_is_gone(fleet.services, fleet.delivery("c", "heartbeat", speaks_for_another))
    assert fleet.round().gone_at is None


def test_the_token_may_come_after_everything(fleet: Fleet) -> None:
    fleet.open()
    for thing in "ab":
        record_update(fleet.services, fleet.update(thing))
    gone(fleet, "c")
    await_updates(fleet.services, TOKEN)
    assert ended(fleet)


def test_it_is_not_asked_for_the_next_round(fleet: Fleet) -> None:
    gone(fleet, "c")
    assert fleet.open().asked == 2
    fleet.pass_time(1)


def test_a_fleet_of_dead_trainers_opens_no_round(fleet: Fleet) -> None:
    for thing in "abc":
        gone(fleet, thing)
    with pytest.raises(RoundRefusedError, match="the trainer does not run"):
        fleet.open()
