from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.cloud.aggregator.listed import Listed, without_uninvited
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.rounds.cohorts import draw_cohort
from fedgrass.cloud.rounds.open_round import OpenRequest, open_round
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.protocol.cohort import draw, fits, is_asked, is_member, takes
from fedgrass.protocol.losses import load_losses
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.message import MAX_MESSAGE_BYTES
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import update_key
from fedgrass.protocol.records import to_attribute
from fedgrass.protocol.roster import asked_things
from fedgrass.protocol.settings import FleetSettings
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


def asked_of(fleet: Fleet, announcement: Announcement, things: list[str]) -> set[str]:
    """Who finds out by the announcement alone that they are asked."""
    tags = {
        member.thing: member.heartbeat.tags
        for member in fleet_members(fleet.services.devices, FLEET)
        if member.heartbeat
    }
    cohort = announcement.cohort
    return {thing for thing in things if takes(cohort, thing) and fits(cohort.where, tags[thing])}


def test_a_cohort_of_a_size_is_asked_for_more_and_ends_with_the_first_so_many(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    things = [f"press-{number}" for number in range(40)]
    fleet.heartbeats(*things)
    record = fleet.open(cohort={"size": 10})
    assert (record.asked, record.quorum) == (13, 10)
    announcement = Announcement.decode(fleet.announcement or b"")
    asked = asked_of(fleet, announcement, things)
    assert len(asked) == 13
    for number, thing in enumerate(sorted(asked)[:10], 1):
        assert fleet.round().collected == (number > 10), "not before the tenth"
        record_update(fleet.services, fleet.update(thing))
    assert fleet.round().collected


def test_where_there_are_fewer_than_a_size_wants_all_are_asked_and_the_quorum_is_theirs(
    make_fleet: FleetFactory,
) -> None:
    fleet = make_fleet()
    fleet.heartbeats(*(f"press-{number}" for number in range(8)))
    record = fleet.open(cohort={"size": 10}, quorum=0.5)
    assert (record.asked, record.quorum) == (8, 4)


def test_a_round_asks_devices_by_their_tags_and_examples_and_says_how_many_are_left_out(
    make_fleet: FleetFactory,
) -> None:
    fleet = make_fleet()
    north, south = [f"n{number}" for number in range(5)], [f"s{number}" for number in range(6)]
    fleet.heartbeats(*north, tags={"site": "north", "hardware": "pi4"}, examples=50)
    fleet.heartbeats(*south, tags={"site": "south"}, examples=50)
    fleet.heartbeats("untagged", examples=50)
    fleet.heartbeats("poor", tags={"site": "north"}, examples=3)
    with pytest.raises(
        RoundRefusedError, match=r"5 devices can train, 6 are needed.*8 of 13 that are alive lack the tags"
    ):
        fleet.open(min_devices=6, cohort={"where": {"site": ["north", "east"]}, "min_examples": 10})
    record = fleet.open(cohort={"where": {"site": ["north", "east"]}, "min_examples": 10})
    assert (record.asked, record.alive) == (5, 13)
    announcement = Announcement.decode(fleet.announcement or b"")
    assert asked_of(fleet, announcement, [*north, *south, "untagged"]) == set(north)
    assert announcement.cohort.min_examples == 10


def test_a_fair_cohort_asks_every_device_once_before_any_again_whatever_the_size(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    things = [f"press-{number}" for number in range(23)]
    fleet.heartbeats(*things)
    counts = dict.fromkeys(things, 0)
    for number in range(1, 10):
        execution = f"{EXECUTION}-{number}"
        fleet.step_functions.statuses[execution] = "RUNNING"
        record = fleet.open(execution, cohort={"size": 4, "over_ask": 1.0, "fair": True}, min_updates=2)
        asked = asked_of(fleet, Announcement.decode(fleet.announcement or b""), things)
        assert len(asked) == record.asked == 4
        for thing in asked:
            counts[thing] += 1
        assert max(counts.values()) - min(counts.values()) <= 1, number
        fleet.step_functions.statuses[execution] = "ABORTED"
    assert set(counts.values()) == {1, 2}


def next_round(fleet: Fleet, number: int, **overrides: Any) -> Announcement:
    execution = f"{EXECUTION}-{number}"
    fleet.step_functions.statuses = {execution: "RUNNING"}
    fleet.open(execution, **overrides)
    return Announcement.decode(fleet.announcement or b"")


def test_a_cohort_by_loss_asks_those_of_the_highest_reported_loss_as_each_finds_out_by_itself(
    make_fleet: FleetFactory,
) -> None:
    fleet = make_fleet()
    things = [f"press-{number}" for number in range(16)]
    fleet.heartbeats(*things)
    by_loss = {"size": 4, "over_ask": 1.0, "by_loss": {"candidates": 3, "explore": 0.25, "max_age": 3}}
    kept: dict[str, list[tuple[int, float]]] = {thing: [] for thing in things}
    chosen = 0
    for number in range(1, 7):
        announced = next_round(fleet, number, cohort=by_loss)
        record, by = fleet.round(number), announced.cohort.by_loss
        assert by is not None
        assert len(fleet.announcement or b"") < 1500
        lots = {thing: draw(announced.cohort.salt, thing) for thing in things}
        known = {thing: told[-1][1] for thing, told in kept.items() if told and told[-1][0] >= number - 3}
        asked = {thing for thing in things if is_asked(announced.cohort, thing, known.get(thing))}
        assert asked == set(asked_things(fleet.rounds, record))
        assert len(asked) == record.asked == record.quorum == 4
        # By hand: of the 12 lowest lots, the first few by lot, and of the rest those of the highest loss.
        candidates = sorted(things, key=lots.__getitem__)[:12]
        explored = [thing for thing in candidates if lots[thing] < by.explore]
        assert 1 <= len(explored) <= 4
        rest = sorted((known[t], t) for t in candidates if t not in explored and t in known)
        assert asked == {*explored, *(thing for _, thing in rest[len(explored) - 4 :][: 4 - len(explored)])}
        chosen += 4 - len(explored)
        for thing in sorted(asked):
            loss = 10.0 + int(thing[6:]) - number / 10
            assert record_update(fleet.services, fleet.update(thing, number, metrics={"loss": loss})) == "counted"
            kept[thing].append((number, loss))
        # Once more, and one that would say otherwise: what was reported stands.
        assert record_update(fleet.services, fleet.update(max(asked), number, metrics={"loss": 1e9})) == "duplicate"
    assert chosen >= 6, "losses decided"


def test_a_candidate_that_has_not_reported_such_a_loss_is_not_counted(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    things = [f"press-{number}" for number in range(12)]
    fleet.heartbeats(*things)
    cohort = {"size": 4, "over_ask": 1.0, "by_loss": {"candidates": 3, "explore": 0.25}}
    for number in (1, 2, 3):
        announced = next_round(fleet, number, cohort=cohort)
        record = fleet.round(number)
        asked = set(asked_things(fleet.rounds, record))
        candidates = {thing for thing in things if takes(announced.cohort, thing)}
        for thing in candidates - asked:
            assert record_update(fleet.services, fleet.update(thing, number, metrics={"loss": 1e9})) == "ignored"
        for thing in asked:
            record_update(fleet.services, fleet.update(thing, number, metrics={"loss": float(thing[6:])}))
        assert (fleet.round(number).uploaded, fleet.round(number).joined) == (4, 0)
        # An update in the bucket, without a word that counts: the job looks at the same table.
        losses = load_losses(fleet.rounds, FLEET)
        listed = Listed([UpdateReference(thing, update_key(FLEET, number, thing), 9) for thing in sorted(candidates)])
        found = without_uninvited(listed, record, losses)
        assert {one.thing for one in found.updates} == asked
        assert {(one.thing, one.reason) for one in found.refused} == {(t, "uninvited") for t in candidates - asked}
    assert len(candidates - asked) > 4


def test_of_silos_no_loss_is_kept(make_fleet: FleetFactory) -> None:
    fleet, silo = make_fleet(), "111111111111-clinic"
    fleet.heartbeats("a", "b", silo)
    cohort = {"size": 3, "over_ask": 1.0, "by_loss": {"candidates": 2}}
    next_round(fleet, 1, cohort=cohort, silos=[silo])
    for thing in ("a", silo):
        assert record_update(fleet.services, fleet.update(thing)) == "counted"
    assert load_losses(fleet.rounds, FLEET).keys() == {"a"}


def test_an_evaluation_asks_by_lot_whatever_was_reported(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    fleet.heartbeats("a", "b", "c", "d")
    cohort = {"size": 2, "over_ask": 1.0, "by_loss": {"candidates": 2}}
    assert next_round(fleet, 1, cohort=cohort, task="evaluate").cohort.by_loss is None


def test_an_announcement_with_the_largest_cohort_reaches_every_nucleus(make_fleet: FleetFactory) -> None:
    fleet = make_fleet()
    where = {f"{name}" + "n" * 31: [f"{value}" + "v" * 39 for value in range(8)] for name in "abcd"}
    fleet.heartbeats("a", "b", tags={name: values[-1] for name, values in where.items()})
    assert fleet.open(cohort={"where": where, "size": 2, "fair": True}).asked == 2
    assert len(fleet.announcement or b"") < MAX_MESSAGE_BYTES - 1000


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fraction": 0.5, "cohort": {"size": 3}}, "set one of them"),
        ({"min_updates": 4, "min_devices": 4, "cohort": {"size": 3}}, "less than min_updates"),
        ({"cohort": {"where": {"a b": ["x"]}}}, "where"),
        ({"cohort": {"where": {"site": []}}}, "where"),
        ({"cohort": {"over_ask": 0.5}}, "over_ask"),
    ],
)
def test_a_cohort_that_cannot_be_is_refused_by_name(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        FleetSettings().overridden(settings)


def test_privacy_is_counted_for_the_whole_fleet_where_more_than_chance_says_who_is_asked() -> None:
    assert FleetSettings(fraction=0.1).sampled_fraction == 0.1
    for cohort in ({"fair": True}, {"where": {"site": ["north"]}}):
        assert FleetSettings().overridden({"fraction": 0.1, "cohort": cohort}).sampled_fraction == 1.0
    assert FleetSettings().overridden({"cohort": {"size": 5}}).sampled_fraction == 1.0
