from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgrass.cloud.rounds.await_updates import aggregate_now, await_updates
from fedgrass.cloud.rounds.changes import transact
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import ConfigurationError, RecordError, RoundRefusedError
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import Participation
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

WAIT = TokenRequest(round=1, token="collect")


def parts(fleet: Fleet, number: int = 1) -> dict[str, Participation]:
    return {part.thing: part for part in participations(fleet.rounds, FLEET, number)}


def test_the_last_upload_of_the_quorum_ends_the_waiting(fleet: Fleet) -> None:
    fleet.open(quorum=0.6)
    await_updates(fleet.services, WAIT)
    record_update(fleet.services, fleet.update("a"))
    assert fleet.step_functions.answers == {}
    fleet.pass_time(5)
    record_update(fleet.services, fleet.update("b"))
    assert fleet.step_functions.answers == {"collect": ("success", {"uploaded": 2})}
    record = fleet.round()
    assert (record.uploaded, record.bytes_uploaded, record.last_upload_at) == (2, 2000, fleet.now_ms)


def test_a_quorum_that_comes_before_the_token_is_not_missed(fleet: Fleet) -> None:
    fleet.open()
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    await_updates(fleet.services, WAIT)
    assert fleet.step_functions.answers == {"collect": ("success", {"uploaded": 3})}


def test_an_execution_can_end_the_collecting_of_the_open_round(fleet: Fleet) -> None:
    now = {"aggregate_now": True}
    with pytest.raises(RoundRefusedError, match="no open round"):
        aggregate_now(fleet.services, now)
    fleet.open()
    await_updates(fleet.services, WAIT)
    record_update(fleet.services, fleet.update("a"))
    with pytest.raises(RoundRefusedError, match="2 are needed"):
        aggregate_now(fleet.services, now)
    record_update(fleet.services, fleet.update("b"))
    assert fleet.step_functions.answers == {}
    assert aggregate_now(fleet.services, now) == {"round": 1, "uploaded": 2}
    assert aggregate_now(fleet.services, now) == {"round": 1, "uploaded": 2}  # safe to repeat
    assert fleet.step_functions.answers == {"collect": ("success", {"uploaded": 2})}


@pytest.mark.parametrize("value", [False, 1, "yes", None])
def test_an_input_that_half_asks_to_aggregate_now_is_refused_in_words(fleet: Fleet, value: object) -> None:
    with pytest.raises(ConfigurationError, match="expected true"):
        aggregate_now(fleet.services, {"aggregate_now": value})


def test_a_notice_delivered_twice_counts_once(fleet: Fleet) -> None:
    fleet.open()
    assert record_update(fleet.services, fleet.update("a")) == "counted"
    assert record_update(fleet.services, fleet.update("a")) == "duplicate"
    assert record_update(fleet.services, fleet.update("a", status="declined")) == "duplicate"
    assert (fleet.round().uploaded, fleet.round().declined) == (1, 0)


def test_a_repeated_notice_completes_what_its_first_delivery_left(fleet: Fleet) -> None:
    fleet.open()
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    # The function died here, after counting: the token was there all along.
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET collect_token = :token",
        ExpressionAttributeValues={":token": "collect"},
    )
    assert record_update(fleet.services, fleet.update("c")) == "duplicate"
    assert "collect" in fleet.step_functions.answers


def test_a_late_notice_is_recorded_and_not_counted(fleet: Fleet) -> None:
    fleet.open()
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET phase = :phase",
        ExpressionAttributeValues={":phase": "aggregating"},
    )
    assert record_update(fleet.services, fleet.update("a")) == "late"
    assert record_update(fleet.services, fleet.update("a")) == "duplicate"
    assert (fleet.round().uploaded, fleet.round().late) == (0, 1)
    assert parts(fleet)["a"].late


def test_collecting_that_ends_between_reading_and_writing_makes_the_notice_late(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedgrass.cloud.rounds import record_update as module

    fleet.open()
    check = module._check

    def end_collecting(*arguments: Any) -> None:
        check(*arguments)
        fleet.rounds.update_item(
            Key={"fleet": FLEET, "key": "round#000001"},
            UpdateExpression="SET phase = :phase",
            ExpressionAttributeValues={":phase": "aggregating"},
        )

    monkeypatch.setattr(module, "_check", end_collecting)
    assert record_update(fleet.services, fleet.update("a")) == "late"
    assert (fleet.round().uploaded, fleet.round().late) == (0, 1)


def test_a_token_that_nobody_waits_for_any_more_is_no_error(fleet: Fleet) -> None:
    fleet.open()
    await_updates(fleet.services, WAIT)
    fleet.step_functions.gone.add("collect")  # the deadline came
    for thing in "abc":
        assert record_update(fleet.services, fleet.update(thing)) == "counted"


def test_a_message_that_speaks_for_another_device_is_ignored(fleet: Fleet) -> None:
    fleet.open()
    theirs = UpdateNotice(fleet=FLEET, round=1, thing="b", status="uploaded")
    foreign = UpdateNotice(fleet="another", round=1, thing="a", status="uploaded")
    assert record_update(fleet.services, fleet.delivery("a", "update", theirs)) == "ignored"
    assert record_update(fleet.services, fleet.delivery("a", "update", foreign)) == "ignored"
    assert parts(fleet) == {}


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"[]", b'{"schema": 1}', b"{" * 3000, b" " * 5000], ids=repr)
def test_a_malformed_message_is_ignored(fleet: Fleet, payload: bytes) -> None:
    fleet.open()
    assert record_update(fleet.services, fleet.delivery("a", "update", payload)) == "ignored"
    assert fleet.round().answered == 0


def test_a_notice_of_a_round_that_never_was_is_ignored(fleet: Fleet) -> None:
    fleet.open()
    assert record_update(fleet.services, fleet.update("a", number=9)) == "ignored"


def test_a_notice_with_another_device_s_key_is_ignored(fleet: Fleet) -> None:
    fleet.open()
    assert (
        record_update(fleet.services, fleet.update("a", key="updates/digits/000001/b/update.safetensors")) == "ignored"
    )


def test_a_device_outside_the_cohort_is_ignored(fleet: Fleet) -> None:
    fleet.heartbeats(*(f"more-{index}" for index in range(20)))
    record = fleet.open(fraction=0.5)
    from fedgrass.protocol.cohort import is_member

    outside = next(
        thing for thing in (f"x{index}" for index in range(100)) if not is_member(record.cohort.salt, 0.5, thing)
    )
    assert record_update(fleet.services, fleet.update(outside)) == "ignored"


def test_waiting_for_a_round_that_collects_no_more_is_an_error(fleet: Fleet) -> None:
    fleet.open()
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET phase = :phase",
        ExpressionAttributeValues={":phase": "closed"},
    )
    with pytest.raises(RecordError, match="collects no updates"):
        await_updates(fleet.services, WAIT)


_ANSWERS = st.sampled_from(["uploaded", "declined", "failed"])


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.fixed_dictionaries(dict.fromkeys("abcde", _ANSWERS)),
    order=st.lists(st.sampled_from("abcde"), min_size=1, max_size=8),
    waits_at=st.integers(0, 8),
)
def test_in_any_order_and_however_often_each_device_counts_once_and_the_wait_ends_once(
    fleet: Fleet, answers: dict[str, Any], order: list[str], waits_at: int
) -> None:
    fleet.heartbeats(*"abcde")
    number = fleet.open(min_updates=1, quorum=0.6).round
    wait = TokenRequest(round=number, token=f"collect-{number}")
    for index, thing in enumerate(order):
        if index == waits_at:
            await_updates(fleet.services, wait)
        record_update(fleet.services, fleet.update(thing, number, status=answers[thing]))
    if waits_at >= len(order):
        await_updates(fleet.services, wait)
    record = fleet.round(number)
    seen = set(order)
    assert record.uploaded == sum(answers[thing] == "uploaded" for thing in seen)
    assert record.answered == len(seen) == len(parts(fleet, number))
    assert (wait.token in fleet.step_functions.answers) == record.collected
    assert record.collected == (record.uploaded >= 3 or record.answered >= 5)
    close(fleet.services, number)  # each example is the next round of the same fleet


class _BusyTable:
    """Refuses transactions as DynamoDB does when they meet others on an item."""

    name = "rounds"

    def __init__(self, conflicts: int) -> None:
        from botocore.exceptions import ClientError

        class CancelledError(ClientError):
            pass

        self.calls = 0
        self._conflicts = conflicts
        self._cancelled = CancelledError
        self.meta: Any = self
        self.client = self
        self.exceptions: Any = type("Exceptions", (), {"TransactionCanceledException": CancelledError})

    def transact_write_items(self, **_: Any) -> None:
        self.calls += 1
        if self.calls <= self._conflicts:
            reasons = {"CancellationReasons": [{"Code": "None"}, {"Code": "TransactionConflict"}]}
            response: Any = {"Error": {"Code": "TransactionCanceledException"}, **reasons}
            raise self._cancelled(response, "TransactWriteItems")


def test_a_transaction_that_meets_another_is_repeated() -> None:
    pauses: list[float] = []
    table: Any = _BusyTable(conflicts=3)
    assert transact(table, [], pause=pauses.append) is None
    assert table.calls == 4
    assert len(pauses) == 3


def test_a_transaction_that_always_meets_others_gives_up_with_an_error() -> None:
    table: Any = _BusyTable(conflicts=1000)
    with pytest.raises(RecordError, match="stayed busy"):
        transact(table, [], pause=lambda _: None)
