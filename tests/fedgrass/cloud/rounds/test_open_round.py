from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.cloud.rounds.open_round import OpenRequest, draw_cohort, open_round
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import MAX_MESSAGE_BYTES, Announcement
from fedgrass.protocol.records import to_attribute
from tests.fedgrass.cloud.rounds.harness import BASE, EXECUTION, FLEET, Fleet, FleetFactory

OTHER = EXECUTION.replace("one", "other")


def test_an_opened_round_is_recorded_locked_and_announced_once(fleet: Fleet) -> None:
    opened = open_round(fleet.services, OpenRequest(execution=EXECUTION, overrides={"deadline_seconds": 60}))
    record = fleet.round(1)
    assert opened["round"] == 1
    assert opened["collect_seconds"] == 60
    assert fleet.open_round == 1
    assert (record.alive, record.asked, record.quorum, record.version) == (3, 3, 3, "1.1.0")
    assert len(fleet.iot.published) == 1
    announcement = Announcement.decode(fleet.announcement or b"")
    assert announcement.round == 1
    assert announcement.base == BASE
    assert (announcement.deadline - announcement.opened_at).total_seconds() == 60
    assert announcement.upload.prefix == "updates/digits/000001/"
    assert len(fleet.announcement or b"") < MAX_MESSAGE_BYTES


def test_a_second_round_is_refused_with_the_open_ones_number(fleet: Fleet) -> None:
    fleet.open()
    with pytest.raises(RoundRefusedError, match=r"round 1 .*" + re.escape(EXECUTION)):
        fleet.open(OTHER)
    assert fleet.open_round == 1
    assert len(fleet.iot.published) == 1


def test_two_executions_at_the_same_moment_open_one_round(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedgrass.cloud.rounds import open_round as module

    take_lock = module._take_lock

    def other_is_first(*arguments: Any) -> bool:
        monkeypatch.setattr(module, "_take_lock", take_lock)
        fleet.open(OTHER)
        return take_lock(*arguments)

    monkeypatch.setattr(module, "_take_lock", other_is_first)
    with pytest.raises(RoundRefusedError, match=r"round 1 .*other"):
        fleet.open()
    assert fleet.round(1).execution == OTHER


def test_a_function_that_runs_again_opens_the_same_round(fleet: Fleet) -> None:
    fleet.iot.fails = 1
    with pytest.raises(Exception, match="InternalFailure"):
        fleet.open()
    assert fleet.open().round == 1
    assert fleet.announcement is not None


def test_a_round_whose_execution_is_gone_is_closed_and_the_next_one_opens(fleet: Fleet) -> None:
    fleet.open()
    fleet.step_functions.statuses[EXECUTION] = "ABORTED"
    assert fleet.open(OTHER).round == 2
    assert (fleet.round(1).phase, fleet.round(1).outcome) == ("closed", "cancelled")
    assert Announcement.decode(fleet.announcement or b"").round == 2


def test_a_round_of_a_forgotten_execution_is_closed_as_failed(fleet: Fleet) -> None:
    fleet.open()
    del fleet.step_functions.statuses[EXECUTION]
    fleet.open(OTHER)
    assert fleet.round(1).outcome == "failed"


def test_silent_devices_and_devices_that_decline_are_not_counted(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    fleet.heartbeats("silent")
    fleet.pass_time(91)
    fleet.heartbeats("able")
    fleet.heartbeats("full", able=False, reason="disk is full")
    with pytest.raises(
        RoundRefusedError, match=r"1 devices can train, 2 are needed.*1 of 3.*silent.*full: disk is full"
    ):
        fleet.open()
    record = fleet.open(min_devices=1, min_updates=1)
    assert (record.alive, record.asked) == (2, 1)


def test_a_device_item_that_cannot_be_read_does_not_stop_a_round(fleet: Fleet) -> None:
    fleet.services.devices.put_item(
        Item=to_attribute({"fleet": FLEET, "thing": "odd", "received_at": "yesterday", "interval_seconds": 30})
    )
    assert fleet.open().asked == 3


def test_a_fleet_without_a_model_is_told_to_publish_one(fleet: Fleet) -> None:
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "state"},
        UpdateExpression="REMOVE #model",
        ExpressionAttributeNames={"#model": "model"},
    )
    with pytest.raises(RoundRefusedError, match="fedgrass model publish"):
        fleet.open()


def test_an_unknown_setting_in_the_input_is_refused_by_name(fleet: Fleet) -> None:
    with pytest.raises(ConfigurationError, match=r"fit\.epoch"):
        fleet.open(fit={"epoch": 3})
    assert fleet.open_round is None


def test_the_console_s_comment_is_no_setting(fleet: Fleet) -> None:
    assert fleet.open(Comment="Insert your JSON here").round == 1


@given(
    things=st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=40),
    fraction=st.floats(0.05, 1.0),
)
def test_a_cohort_always_takes_as_many_as_it_says(things: set[str], fraction: float) -> None:
    try:
        cohort, asked = draw_cohort(sorted(things), fraction, 1, FLEET)
    except RoundRefusedError:
        assert fraction < 1
        return
    assert asked == sum(is_member(cohort.salt, fraction, thing) for thing in things) >= 1


def test_a_fraction_that_cannot_give_enough_updates_is_refused() -> None:
    with pytest.raises(RoundRefusedError, match="raise fraction"):
        draw_cohort(["a", "b"], 0.001, 2, FLEET)
