"""Who is counted: adversaries and accidents against what a round counts, and the counters against a plain reference."""

from __future__ import annotations

import base64
from collections import Counter
from datetime import timedelta
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedgrass.cloud.infrastructure.devices import forget
from fedgrass.cloud.rounds.await_rollout import await_rollout
from fedgrass.cloud.rounds.await_updates import await_updates
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import RoundRefusedError
from fedgrass.protocol import roster
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.names import device_topic
from fedgrass.protocol.records import Participation
from fedgrass.protocol.roster import presence, things_of_fleet
from fedgrass.protocol.tables import participations
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory

WAIT = TokenRequest(round=1, token="collect")
INVENTED = ("210987654321-x", "210987654321-y", "210987654321-z")
CLINIC = "210987654321-clinic"


def parts(fleet: Fleet, number: int = 1) -> dict[str, Participation]:
    return {part.thing: part for part in participations(fleet.rounds, FLEET, number)}


def released(fleet: Fleet, **overrides: Any) -> None:
    fleet.open(**overrides)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    fleet.write_report()
    record_report(fleet.services, RoundRequest(round=1))


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


def judging(fleet: Fleet) -> None:
    fleet.open(gate={"devices_seconds": 60})
    record_update(fleet.services, fleet.update("a", status="declined"))
    for thing in "bc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET judging = :yes",
        ExpressionAttributeValues={":yes": True},
    )


FIGURES = {"loss": 0.4, "accuracy": 0.9, "base_loss": 0.5, "base_accuracy": 0.8}


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
        def put_item(self, *, Item: dict[str, Any]) -> None:  # noqa: N803 - boto3's name
            sizes[Item["key"]] = sum(len(name) + 1 for name in (*Item["asked"], *Item["others"]))

    roster.write_roster(Recording(), big, alive=names, asked=set(names[::2]))  # type: ignore[arg-type]
    assert len(sizes) < 100
    assert max(sizes.values()) < 100_000
    assert presence(record, opened, "a") == roster.Presence(alive=True, asked=True)
    assert presence(record, opened, "stranger") == roster.Presence()


# ------------------------------------------------------------------------- any order, any number: a plain reference

# Each example is a round of the same fleet. What fails is not shrunk: an example takes a second, and leaves its round open.
property_of_a_fleet = settings(
    deadline=None,
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

_MEMBERS = {"a": "asked", "b": "asked", "c": "asked", "d": "unable", "e": "silent"}
_STRANGERS = ("mallory", INVENTED[0])
_NOTICES = st.lists(
    st.tuples(st.sampled_from([*_MEMBERS, *_STRANGERS]), st.sampled_from(["uploaded", "declined", "failed"])),
    max_size=14,
)
_BEST = ["declined", "failed", "uploaded"]


def reference(in_time: list[tuple[str, str]], late: list[tuple[str, str]]) -> dict[str, int]:
    """What should be counted: of each member the best that it said in time, else that something of it came late."""
    counts = dict.fromkeys(("uploaded", "declined", "failed", "joined", "late"), 0)
    for member, kind in _MEMBERS.items():
        said = [status for thing, status in in_time if thing == member]
        if said:
            best = max(said, key=_BEST.index)
            if kind == "asked":
                counts[best] += 1
            elif best == "uploaded":
                counts["joined"] += 1
        elif any(thing == member for thing, _ in late):
            counts["late"] += 1
    return counts


@property_of_a_fleet
@given(in_time=_NOTICES, late=_NOTICES)
def test_the_counters_are_the_reference_s_in_any_order_and_number(
    fleet: Fleet, in_time: list[tuple[str, str]], late: list[tuple[str, str]]
) -> None:
    fleet.heartbeats("e")
    fleet.pass_time(100)
    fleet.heartbeats("a", "b", "c", INVENTED[0])
    fleet.heartbeats("d", able=False)
    record = fleet.open(min_updates=1)
    number = record.round
    assert record.asked == 3
    for thing, status in in_time:
        record_update(fleet.services, fleet.update(thing, number, status=status))
    start_aggregation(fleet.services, TokenRequest(round=number, token=f"job-{number}"))
    for thing, status in late:
        record_update(fleet.services, fleet.update(thing, number, status=status))
    found = fleet.round(number)
    expected = reference(in_time, late)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.collected == (expected["uploaded"] >= found.quorum or found.answered >= 3)
    assert set(parts(fleet, number)) == {thing for thing, _ in (*in_time, *late) if thing in _MEMBERS}
    close(fleet.services, number)


_WORDS = st.lists(
    st.tuples(st.sampled_from([*_MEMBERS, *_STRANGERS]), st.sampled_from(["active", "refused", "rolled_back"])),
    max_size=12,
)


@property_of_a_fleet
@given(said=_WORDS, order=st.randoms(use_true_random=False))
def test_of_each_device_the_last_word_on_a_model_counts_in_whatever_order_words_come(
    fleet: Fleet, said: list[tuple[str, Any]], order: Any
) -> None:
    fleet.heartbeats("e")
    fleet.pass_time(100)
    fleet.heartbeats("a", "b", "c", INVENTED[0])
    fleet.heartbeats("d", able=False)
    if (left := fleet.open_round) is not None:
        close(fleet.services, left)  # hypothesis ended an example halfway: its draws ran out
    # Nothing is taken back for refusals, which would end the roll-out (`test_taken_back` is about that).
    record = fleet.open(min_updates=1, rollout={"refusal": "fail"})
    number = record.round
    record_update(fleet.services, fleet.update("a", number))
    start_aggregation(fleet.services, TokenRequest(round=number, token=f"job-{number}"))
    fleet.write_report(number=number)
    record_report(fleet.services, RoundRequest(round=number))
    await_rollout(fleet.services, TokenRequest(round=number, token=f"rollout-{number}"))
    deliveries = []
    for thing, outcome in said:
        fleet.pass_time(1)
        deliveries.append(fleet.model(thing, outcome, version=record.version))
    shuffled = [*deliveries, *deliveries]  # at least once
    order.shuffle(shuffled)
    for delivery in shuffled:
        record_model(fleet.services, delivery)
    last = {thing: outcome for thing, outcome in said if thing in "abcd"}  # who was alive
    expected = {outcome: list(last.values()).count(outcome) for outcome in ("active", "refused", "rolled_back")}
    found = fleet.round(number)
    assert {name: getattr(found, name) for name in expected} == expected
    assert (f"rollout-{number}" in fleet.step_functions.answers) == (len(last) == 4)
    close(fleet.services, number)


def test_a_word_said_again_later_is_the_last_one_though_it_changes_nothing(fleet: Fleet) -> None:
    released(fleet)
    deliveries = []
    for outcome in ("active", "refused", "active"):
        fleet.pass_time(1)
        deliveries.append(fleet.model("a", outcome))
    for position in (0, 2, 1):
        record_model(fleet.services, deliveries[position])
    assert (fleet.round().active, fleet.round().refused) == (1, 0)


_JUDGEMENTS = st.lists(
    st.tuples(
        st.sampled_from([*_MEMBERS, *_STRANGERS]),
        st.sampled_from(["evaluated", "declined", "failed", "fit: declined", "fit: uploaded"]),
    ),
    max_size=12,
)


@property_of_a_fleet
@given(said=_JUDGEMENTS)
def test_judgements_are_counted_as_the_reference_does_among_repeated_answers_to_the_round(
    fleet: Fleet, said: list[tuple[str, str]]
) -> None:
    fleet.heartbeats("e")
    fleet.pass_time(100)
    fleet.heartbeats("a", "b", "c", INVENTED[0])
    fleet.heartbeats("d", able=False)
    record = fleet.open(min_updates=1, gate={"devices_seconds": 60})
    number = record.round
    record_update(fleet.services, fleet.update("a", number))
    start_aggregation(fleet.services, TokenRequest(round=number, token=f"job-{number}"))
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": f"round#{number:06d}"},
        UpdateExpression="SET judging = :yes",
        ExpressionAttributeValues={":yes": True},
    )
    before = fleet.round(number)
    for thing, what in said:
        to_the_round = what.startswith("fit: ")
        status: Any = what.removeprefix("fit: ")
        opened_at = record.opened_at + timedelta(seconds=0 if to_the_round else 5)
        changes: dict[str, Any] = {} if status == "uploaded" else {"key": None, "sha256": None, "bytes": 0}
        figures = {"num_examples": 10, "metrics": FIGURES} if status == "evaluated" else {"metrics": {}}
        record_update(
            fleet.services, fleet.update(thing, number, status=status, opened_at=opened_at, **changes, **figures)
        )
    answers = {
        thing: [what for other, what in said if other == thing and not what.startswith("fit: ")] for thing in "abc"
    }
    judged = sum("evaluated" in words for words in answers.values())
    found = fleet.round(number)
    assert (found.judged, found.not_judged) == (judged, sum(bool(words) for words in answers.values()) - judged)
    assert found.judged_examples == 10 * judged
    assert (found.uploaded, found.declined, found.failed) == (before.uploaded, before.declined, before.failed)
    close(fleet.services, number)


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
