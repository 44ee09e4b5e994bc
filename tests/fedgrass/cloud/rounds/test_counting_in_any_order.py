"""The counters against a plain reference: whatever devices say, in any order and any number of times."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedgrass.cloud.rounds.await_rollout import await_rollout
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from tests.fedgrass.cloud.rounds.counting import FIGURES, INVENTED, parts, released
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

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
