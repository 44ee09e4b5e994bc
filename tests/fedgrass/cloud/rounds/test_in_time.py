"""An update that the round's job found was in time, whenever the notice of it comes."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.update_list import UpdateList
from fedgrass.cloud.ending.finish import finish
from fedgrass.cloud.ending.in_time import list_key
from fedgrass.cloud.ending.outcome import decide
from fedgrass.cloud.ending.reports import proposal_key
from fedgrass.cloud.rounds import record_update as module
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.names import report_key, update_key
from fedgrass.protocol.participations import load_participation
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory


@pytest.fixture
def fleet(make_fleet: FleetFactory) -> Fleet:
    """Four devices of a round that one update ended; the others' notices are still on their way."""
    fleet: Fleet = make_fleet()
    fleet.heartbeats(*"abcd")
    fleet.open(quorum=0.1, min_updates=1)
    assert record_update(fleet.services, fleet.update("a")) == "counted"
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    return fleet


def pin_update_list(fleet: Fleet, *things: str) -> None:
    """Write the list as the job does (`fedgrass.cloud.aggregator.update_list`)."""
    found = tuple(UpdateReference(thing, update_key(FLEET, 1, thing), 1000, "etag") for thing in things)
    pinned = UpdateList(updates=found, noise_seed="0" * 64)
    body = io.BytesIO(pinned.model_dump_json(by_alias=True).encode())
    fleet.services.s3.put_object(Bucket="fedgrass-digits", Key=list_key(FLEET, 1), Body=body)


def conclude(fleet: Fleet) -> None:
    """Let the job propose, decide, and finish."""
    report = fleet.write_report("held")
    fleet.services.s3.delete_object(Bucket="fedgrass-digits", Key=report_key(FLEET, 1))
    fleet.services.s3.put_object(Bucket="fedgrass-digits", Key=proposal_key(FLEET, 1), Body=report.to_json())
    assert decide(fleet.rounds, fleet.round(), report) == "decided"
    assert finish(fleet.services.place, fleet.round()) is not None


def counts(fleet: Fleet) -> tuple[int, int, int]:
    record = fleet.round()
    return record.uploaded, record.late, record.bytes_uploaded


def is_late(fleet: Fleet, thing: str) -> bool:
    part = load_participation(fleet.rounds, FLEET, 1, thing)
    assert part is not None
    return part.late


def test_a_late_notice_of_an_update_that_the_job_has_listed_counts(fleet: Fleet) -> None:
    pin_update_list(fleet, "a", "b")
    assert record_update(fleet.services, fleet.update("b")) == "counted"
    assert record_update(fleet.services, fleet.update("b")) == "duplicate"
    assert record_update(fleet.services, fleet.update("c")) == "late"
    assert (is_late(fleet, "b"), is_late(fleet, "c"), counts(fleet)) == (False, True, (2, 1, 2000))


def test_what_was_late_before_the_job_looked_is_compared_by_whoever_finishes_the_round(fleet: Fleet) -> None:
    for thing in "bcd":
        assert record_update(fleet.services, fleet.update(thing)) == "late"
    pin_update_list(fleet, "a", "b", "c")
    conclude(fleet)
    fleet.services.s3.delete_object(Bucket="fedgrass-digits", Key=report_key(FLEET, 1))
    assert finish(fleet.services.place, fleet.round()) is not None, "ended before its report: done again"
    assert [is_late(fleet, thing) for thing in "abcd"] == [False, False, False, True]
    assert counts(fleet) == (3, 1, 3000)


def test_a_notice_after_the_round_is_compared_too(fleet: Fleet) -> None:
    pin_update_list(fleet, "a", "b")
    conclude(fleet)
    assert record_update(fleet.services, fleet.update("b")) == "counted"
    assert counts(fleet) == (2, 0, 2000)


def test_a_function_that_ends_between_writing_and_comparing_is_made_up_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_update_list(fleet, "a", "b")

    def dies(*_arguments: Any) -> bool:
        raise RuntimeError("the function ends here")

    with monkeypatch.context() as patch:
        patch.setattr(module, "count_if_listed", dies)
        with pytest.raises(RuntimeError):
            record_update(fleet.services, fleet.update("b"))
    assert counts(fleet) == (1, 1, 1000)
    assert record_update(fleet.services, fleet.update("b")) == "counted"
    assert counts(fleet) == (2, 0, 2000)


def test_who_was_not_asked_joins_and_who_declines_late_stays_late(fleet: Fleet) -> None:
    fleet.heartbeats("e")
    pin_update_list(fleet, "a", "b", "e")
    assert record_update(fleet.services, fleet.update("e")) == "counted"
    assert record_update(fleet.services, fleet.update("b", status="declined", key=None, sha256=None, bytes=0)) == "late"
    assert (fleet.round().joined, counts(fleet)) == (1, (1, 1, 2000))
    assert record_update(fleet.services, fleet.update("b")) == "counted"
    assert counts(fleet) == (2, 0, 3000)
