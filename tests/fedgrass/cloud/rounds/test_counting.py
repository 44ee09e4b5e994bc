"""Who is counted: adversaries and accidents against what a round counts, and the counters against a plain reference."""

from __future__ import annotations

import base64
from collections import Counter
from datetime import timedelta
from typing import Any

import boto3
import pytest

from fedgrass.cloud.infrastructure.devices import forget
from fedgrass.cloud.rounds.await_rollout import await_rollout
from fedgrass.cloud.rounds.await_updates import await_updates
from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import RoundRefusedError
from fedgrass.protocol import roster
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.names import device_topic
from fedgrass.protocol.roster import presence, things_of_fleet
from tests.fedgrass.cloud.rounds.counting import FIGURES, INVENTED, judging, parts, released
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory

WAIT = TokenRequest(round=1, token="collect")
CLINIC = "210987654321-clinic"


# ---------------------------------------------------------------------------------------------------- strangers


def test_strangers_make_no_quorum(fleet: Fleet) -> None:
    fleet.open()
    await_updates(fleet.services, WAIT)
    for stranger in ("mallory", "eve", "oscar", *INVENTED):
        assert record_update(fleet.services, fleet.update(stranger)) == "ignored"
    assert fleet.step_functions.answers == {}
    assert (fleet.round().uploaded, fleet.round().joined, fleet.round().late) == (0, 0, 0)
    assert parts(fleet) == {}, "and leave nothing behind"


def test_invented_silos_are_no_devices_that_a_round_could_open_with(fleet: Fleet) -> None:
    fleet.heartbeats(*INVENTED)
    with pytest.raises(RoundRefusedError, match="3 devices can train, 4 are needed"):
        fleet.open(min_devices=4)
    record = fleet.open()
    assert (record.alive, record.asked, record.quorum) == (3, 3, 3)
    for name in INVENTED:  # heard of by their heartbeats, and still not listed
        assert record_update(fleet.services, fleet.update(name)) == "ignored"
        record_model(fleet.services, fleet.model(name))
    assert fleet.round().active == 0


def test_a_silo_that_the_settings_list_takes_part_and_its_neighbour_does_not(fleet: Fleet) -> None:
    fleet.heartbeats(CLINIC, *INVENTED)
    record = fleet.open(silos=[CLINIC])
    assert (record.alive, record.asked) == (4, 4)
    assert record_update(fleet.services, fleet.update(CLINIC)) == "counted"
    assert record_update(fleet.services, fleet.update(INVENTED[0])) == "ignored"
    assert things_of_fleet(fleet.services.devices, FLEET, record.settings.silos) == {"a", "b", "c", CLINIC}


def test_strangers_do_not_roll_a_model_out_nor_refuse_it(fleet: Fleet) -> None:
    released(fleet)
    await_rollout(fleet.services, TokenRequest(round=1, token="rollout"))
    for stranger in ("mallory", "eve", *INVENTED):
        record_model(fleet.services, fleet.model(stranger))
        record_model(fleet.services, fleet.model(stranger, "refused"))
    assert "rollout" not in fleet.step_functions.answers
    record = fleet.round()
    assert (record.active, record.refused, record.rolled_back) == (0, 0, 0)
    assert things_of_fleet(fleet.services.devices, FLEET, ()) == set("abc"), "a word on a model makes nobody a member"
    heard_of = {member.thing for member in fleet_members(fleet.services.devices, FLEET)}
    assert heard_of.isdisjoint(INVENTED)


def test_a_word_on_a_model_that_is_not_made_yet_is_not_counted(fleet: Fleet) -> None:
    fleet.open()
    record_model(fleet.services, fleet.model("a"))
    assert fleet.round().active == 0


def test_a_device_that_was_removed_is_not_counted_and_one_that_expired_neither(fleet: Fleet) -> None:
    fleet.open()
    devices: Any = fleet.services.devices
    devices.delete_item(Key={"fleet": FLEET, "thing": "a"})
    devices.update_item(
        Key={"fleet": FLEET, "thing": "b"},
        UpdateExpression="SET expires = :past",
        ExpressionAttributeValues={":past": 1},
    )
    assert record_update(fleet.services, fleet.update("a")) == "ignored"
    assert record_update(fleet.services, fleet.update("b")) == "ignored"
    assert record_update(fleet.services, fleet.update("c")) == "counted"
    assert things_of_fleet(devices, FLEET, ()) == {"c"}


def test_a_thing_that_answers_for_another_is_ignored_whatever_field_it_uses(fleet: Fleet) -> None:
    fleet.open()
    theirs = UpdateNotice(fleet=FLEET, round=1, thing="b", status="declined")
    assert record_update(fleet.services, fleet.delivery("a", "update", theirs)) == "ignored"
    doubled = b'{"schema": 1, "fleet": "digits", "round": 1, "thing": "b", "thing": "b", "status": "declined"}'
    assert record_update(fleet.services, fleet.delivery("a", "update", doubled)) == "ignored"
    elsewhere = Delivery(
        topic=device_topic("other", "a", "update"),
        payload=base64.b64encode(UpdateNotice(fleet="other", round=1, thing="a", status="declined").encode()).decode(),
        received_at=0,
    )
    assert record_update(fleet.services, elsewhere) == "ignored"
    assert parts(fleet) == {}


# ------------------------------------------------------------------------------- asked and answered: the same devices


def test_devices_that_were_not_able_at_the_opening_do_not_end_the_round_by_declining(fleet: Fleet) -> None:
    fleet.heartbeats("d", "e", "f", able=False, reason="disk is full")
    record = fleet.open()
    assert (record.alive, record.asked) == (6, 3)
    await_updates(fleet.services, WAIT)
    for thing in "def":
        record_update(fleet.services, fleet.update(thing, status="declined"))
    assert fleet.step_functions.answers == {}, "three healthy devices are training"
    assert fleet.round().answered == 0
    assert not parts(fleet)["d"].asked
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    assert fleet.step_functions.answers == {"collect": ("success", {"uploaded": 3})}


def test_the_same_goes_for_an_evaluation(fleet: Fleet) -> None:
    fleet.heartbeats("d", "e", "f", able=False)
    fleet.open(task="evaluate")
    await_updates(fleet.services, WAIT)
    for thing in "def":
        record_update(fleet.services, fleet.update(thing, status="declined"))
    assert fleet.step_functions.answers == {}


def test_a_device_that_wakes_up_joins_in_and_takes_nobody_s_place(fleet: Fleet) -> None:
    fleet.open(quorum=0.6)
    fleet.heartbeats("late-riser")
    await_updates(fleet.services, WAIT)
    record_update(fleet.services, fleet.update("a"))
    assert record_update(fleet.services, fleet.update("late-riser")) == "counted"
    assert fleet.step_functions.answers == {}, "the quorum is of those that were asked"
    record = fleet.round()
    assert (record.uploaded, record.joined, record.contributed, record.bytes_uploaded) == (1, 1, 2, 2000)
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    assert fleet.sagemaker.jobs, "two updates are enough for the job, whoever sent them"


def test_the_roll_out_waits_for_those_that_were_alive_and_not_for_as_many_others(fleet: Fleet) -> None:
    released(fleet)
    await_rollout(fleet.services, TokenRequest(round=1, token="rollout"))
    fleet.heartbeats("d", "e", "f")
    for thing in "def":
        record_model(fleet.services, fleet.model(thing))
    assert "rollout" not in fleet.step_functions.answers
    assert (fleet.round().active, parts(fleet)["d"].model_outcome) == (0, "active")
    for thing in "abc":
        record_model(fleet.services, fleet.model(thing))
    assert fleet.step_functions.answers["rollout"] == ("success", {"active": 3})


def test_a_device_that_declines_is_replaced_and_uploads_has_uploaded(fleet: Fleet) -> None:
    fleet.open()
    assert record_update(fleet.services, fleet.update("a", status="declined", reason="battery")) == "counted"
    assert record_update(fleet.services, fleet.update("a")) == "counted"
    assert record_update(fleet.services, fleet.update("a", status="declined")) == "duplicate"
    assert record_update(fleet.services, fleet.update("a", status="failed")) == "duplicate"
    record = fleet.round()
    assert (record.uploaded, record.declined, record.failed, record.answered) == (1, 0, 0, 1)
    assert (parts(fleet)["a"].status, parts(fleet)["a"].reason) == ("uploaded", "")


def test_what_a_device_said_in_time_stands_against_what_it_says_late(fleet: Fleet) -> None:
    fleet.open(min_updates=1)
    record_update(fleet.services, fleet.update("a", status="declined"))
    record_update(fleet.services, fleet.update("b"))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    assert record_update(fleet.services, fleet.update("a")) == "duplicate"
    assert record_update(fleet.services, fleet.update("c", status="failed")) == "late"
    assert record_update(fleet.services, fleet.update("c")) == "late"
    record = fleet.round()
    assert (record.uploaded, record.declined, record.failed, record.late) == (1, 1, 0, 1)
    assert (parts(fleet)["a"].status, parts(fleet)["c"].status) == ("declined", "uploaded")


# ---------------------------------------------------------------------------------------- an answer names its task


@pytest.mark.parametrize("names_its_task", [False, True])
def test_a_repeated_answer_to_the_round_is_no_vote_on_its_model(fleet: Fleet, names_its_task: bool) -> None:
    judging(fleet)
    opened_at = fleet.round().opened_at if names_its_task else None
    for _ in range(3):
        for status in ("declined", "failed"):
            record_update(fleet.services, fleet.update("a", status=status, opened_at=opened_at))
        record_update(fleet.services, fleet.update("b", opened_at=opened_at))
    assert (fleet.round().judged, fleet.round().not_judged) == (0, 0)


def test_only_devices_that_were_asked_judge_and_each_once_with_the_best_it_said(fleet: Fleet) -> None:
    judging(fleet)
    fleet.heartbeats("d")
    later = fleet.round().opened_at + timedelta(seconds=9)

    def say(thing: str, status: Any, **changes: Any) -> str:
        fields = {"key": None, "sha256": None, "bytes": 0, "opened_at": later, "status": status, **changes}
        return record_update(fleet.services, fleet.update(thing, **fields))

    assert say("a", "declined") == "counted"
    assert say("a", "declined") == "duplicate"
    assert say("a", "evaluated", num_examples=10, metrics=FIGURES) == "counted"
    assert say("a", "declined") == "duplicate"
    assert say("b", "evaluated", num_examples=10, metrics=FIGURES) == "counted"
    assert say("d", "evaluated", num_examples=10**6, metrics=FIGURES) == "ignored"
    assert say("mallory", "evaluated", num_examples=10**6, metrics=FIGURES) == "ignored"
    assert say("c", "uploaded") == "ignored"
    record = fleet.round()
    assert (record.judged, record.not_judged, record.judged_examples) == (2, 0, 20)


def test_an_answer_to_an_earlier_fleet_s_round_of_this_number_is_ignored(fleet: Fleet) -> None:
    record = fleet.open()
    earlier = record.opened_at - timedelta(days=30)
    assert record_update(fleet.services, fleet.update("a", opened_at=earlier)) == "ignored"
    assert record_update(fleet.services, fleet.update("a", opened_at=record.opened_at)) == "counted"


# --------------------------------------------------------------------------------------------------------- sizes


def test_what_is_written_at_an_opening_stays_within_dynamodb_s_bounds(
    make_fleet: FleetFactory,
) -> None:
    fleet = make_fleet()
    record = fleet.rounds  # the names are what counts: no heartbeats are needed
    fleet.heartbeats("a", "b")
    opened = fleet.open()
    big = opened.model_copy(update={"alive": 20_000})
    names = [f"{index:05d}-{'x' * 122}" for index in range(big.alive)]
    sizes: Counter[str] = Counter()

    class Recording:
        name = "rounds"

        def put_item(self, *, Item: dict[str, Any]) -> None:  # noqa: N803 - boto3's name
            sizes[Item["key"]] = sum(len(name) + 1 for name in (*Item["asked"], *Item["others"]))

    roster.write_roster(Recording(), big, alive=names, asked=set(names[::2]))  # type: ignore[arg-type]
    assert len(sizes) < 100
    assert max(sizes.values()) < 100_000
    assert presence(record, opened, "a") == roster.Presence(alive=True, asked=True)
    assert presence(record, opened, "stranger") == roster.Presence()


def test_a_device_that_was_removed_counts_no_more_from_then_on(fleet: Fleet) -> None:
    record_model(fleet.services, fleet.model("a", version="1.0.0"))
    fleet.open(min_updates=1)
    session = boto3.Session(region_name="us-east-1")
    for _ in range(2):
        forget(session, "devices", FLEET, "a")
    assert record_update(fleet.services, fleet.update("a")) == "ignored"
    assert record_update(fleet.services, fleet.update("b")) == "counted"
    assert things_of_fleet(fleet.services.devices, FLEET, ()) == {"b", "c"}
    assert [member.thing for member in fleet_members(fleet.services.devices, FLEET)] == ["b", "c"]
