"""Rounds that never wait: the pages read as a stream, in which an update that comes later has its turn later."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fedgrass.cloud.console.streams import rounds_late, turns
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import parameters_key, report_key, update_key
from fedgrass.protocol.records import Participation, RoundRecord
from fedgrass.protocol.report import ModelEntry, RoundReport, UpdateEntry
from fedgrass.protocol.roster import write_roster
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.console.conftest import FLEET, NOW, Browser, Fleet, visible

STREAM = FleetSettings().overridden(
    {
        "mode": "asynchronous",
        "buffer_size": 2,
        "min_updates": 1,
        "rounds": 100,
        "strategy": {"name": "fedbuff", "options": {"staleness": 20}},
    }
)


def base(version: int) -> Base:
    return Base(
        version=f"1.{version}.0",
        parameters_key=parameters_key(FLEET, f"1.{version}.0"),
        parameters_sha256=f"{version:064x}",
        graph_sha256="a" * 64,
    )


class Stream:
    """Rounds of a stream, an hour each, ``last`` of which is open; device-2 answers late."""

    def __init__(self, fleet: Fleet, took: dict[int, dict[int, int]], settings: FleetSettings = STREAM) -> None:
        self._fleet = fleet
        sample = fleet.fill(devices=3, rounds=1)
        self.last = max(took) + 1
        self.records: dict[int, RoundRecord] = {}
        version = 0
        for number in range(1, self.last + 1):
            opened = NOW - timedelta(hours=self.last - number + 1)
            closed = number < self.last
            adopted = closed and took[number] is not None and bool(took[number])
            update: dict[str, Any] = {
                "settings": settings,
                "took": took.get(number),
                "base": base(version),
                "participants": sum(took[number].values()) if closed else None,
                "opened_at": opened,
                "aggregated_at": opened + timedelta(minutes=50) if closed else None,
                "closed_at": opened + timedelta(minutes=55) if closed else None,
                "phase": "closed" if closed else "collecting",
                "outcome": ("released" if adopted else "insufficient_updates") if closed else None,
                "quorum": 2,
                "uploaded": 2 if closed else 0,
                "bytes_uploaded": 0,
            }
            record = sample.record(number).model_copy(update=update)
            self.records[number] = record
            version = number if adopted else version
            fleet.account.rounds_table.put_item(Item=record.to_item())
        fleet.open(self.records[self.last])

    def answer(self, number: int, thing: str, *, late: int = 0, status: str = "uploaded") -> Participation:
        """Have a device answer a round, so many rounds late."""
        came = self.records[number + late].opened_at + timedelta(minutes=10)
        part = Participation(
            fleet=FLEET,
            round=number,
            thing=thing,
            status=status,  # type: ignore[arg-type]
            asked=True,
            late=late > 0,
            received_at=int(came.timestamp() * 1000),
        )
        self._fleet.account.rounds_table.put_item(Item=part.to_item())
        return part

    def report(self, number: int, *entries: tuple[str, int | None, int]) -> None:
        """Put a round's report into the bucket: device, earlier round and age of each update."""
        record = self.records[number]
        report = RoundReport(
            fleet=FLEET,
            round=number,
            outcome="released",
            strategy="fedbuff",
            started_at=NOW,
            finished_at=NOW,
            base=ModelEntry.of(record.base),
            updates=tuple(
                UpdateEntry(
                    thing=thing,
                    key=update_key(FLEET, late_for or number, thing),
                    etag="e",
                    bytes=1,
                    num_examples=1,
                    weight=0.5,
                    norm=1,
                    late_for=late_for,
                    age=age,
                )
                for thing, late_for, age in entries
            ),
        )
        self._fleet.account.s3.put_object(
            Bucket=self._fleet.account.stack.bucket, Key=report_key(FLEET, number), Body=report.to_json()
        )


@pytest.fixture
def stream(fleet: Fleet) -> Stream:
    """Round 2 makes no model, and leaves its update to round 3; round 1's late one has its turn in round 4."""
    return Stream(fleet, {1: {1: 2}, 2: {}, 3: {3: 1, 2: 1}, 4: {4: 1, 1: 1}})


def test_a_devices_page_says_in_which_round_a_late_update_had_its_turn_and_how_old_it_was(
    stream: Stream, browser: Browser
) -> None:
    stream.answer(1, "press-00001")
    stream.answer(1, "press-00002", late=3)
    stream.answer(2, "press-00002")
    stream.answer(4, "press-00002", late=1)
    page = browser.get("/devices/press-00002")
    words = visible(page)
    assert "1 1.0.0 uploaded after its round 4 2" in words, "rounds 1 and 3 made models; round 2 made none"
    assert "2 1.1.0 uploaded 3 0" in words
    assert "4 1.3.0 uploaded after its round – –" in words, "the open round has not looked yet"
    assert "late" not in words.replace("later", "")
    assert "uploaded 1 0" in visible(browser.get("/devices/press-00001"))


def test_a_late_answer_to_a_round_that_waits_did_not_count(fleet: Fleet, browser: Browser) -> None:
    stream = Stream(fleet, {1: {1: 2}, 2: {2: 2}}, FleetSettings())
    stream.answer(1, "press-00002", late=1)
    words = visible(browser.get("/devices/press-00002"))
    assert "uploaded late, not counted" in words
    assert "Turn in round" not in words
    assert "late, not counted" in visible(browser.get("/rounds/1"))


def test_a_rounds_page_shows_on_which_version_each_update_was_trained(stream: Stream, browser: Browser) -> None:
    stream.report(4, ("press-00001", None, 0), ("press-00002", 1, 2), ("press-00003", 77, 9))
    page = browser.get("/rounds/4")
    words = visible(page)
    assert "press-00001 4 1.3.0 0" in words
    assert "press-00002 1 1.0.0 2" in words
    assert "press-00003 77 – 9" in words, "a round of which there is no record"
    assert "1 of earlier rounds, up to 3 back" in words
    assert "a model of each 2 updates, or after 60 min" in words
    first = visible(browser.get("/rounds/1"))
    assert "Its other updates had their turn in round 4" in first
    assert "had their turn" not in words


def test_the_rounds_and_the_panel_read_as_a_stream(stream: Stream, browser: Browser) -> None:
    page = browser.get("/rounds/")
    words = visible(page)
    assert "Round 5 is open stream" in words
    assert "of 2 that make the next model" in words
    assert "what they send counts in the round that is open then" in words
    assert "2, 1 of earlier rounds, up to 3 back" in words
    assert "Rounds that updates came late, mean" in page
    assert "Devices whose update was used" not in page, "a share of devices that nobody waits for says nothing"
    assert "0 in round 1, 1.5 in round 4" in words


def test_a_stream_without_any_update_yet(fleet: Fleet, browser: Browser) -> None:
    stream = Stream(fleet, {1: {}})
    write_roster(fleet.account.rounds_table, stream.records[2], alive=["press-00001"], asked=["press-00001"])
    for address in ("/", "/rounds/", "/runs/1", "/rounds/1", "/devices/press-00001", "/models/"):
        browser.get(address)
    words = visible(browser.get("/rounds/2"))
    assert "No answer yet" in words
    assert "The round does not wait for them" in words
    assert "Waited for" not in words


def test_a_record_of_an_earlier_release_has_no_turns_but_its_own(stream: Stream) -> None:
    records = [record.model_copy(update={"took": None}) for record in stream.records.values()]
    in_time, late = stream.answer(1, "press-00001"), stream.answer(3, "press-00001", late=1)
    assert [turn.round for turn in turns([in_time, late], records).values()] == [1]
    assert {rounds_late(record) for record in records} == {None}


def test_whoever_is_waited_for_is_read_a_page_at_a_time(
    fleet: Fleet, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = fleet.fill(devices=1, rounds=1)
    asked = [f"press-{number:05d}" for number in range(1, 1501)]
    record = sample.record(2).model_copy(
        update={"phase": "collecting", "outcome": None, "aggregated_at": None, "asked": 1500, "alive": 1500}
    )
    write_roster(fleet.account.rounds_table, record, alive=asked, asked=asked)
    fleet.open(record)
    with fleet.account.rounds_table.batch_writer() as batch:
        for thing in asked[:-30]:
            part = Participation(fleet=FLEET, round=2, thing=thing, status="uploaded", asked=True)
            batch.put_item(Item=part.to_item())
    read: list[int] = []
    real = fleet.account.rounds_table.meta.client.batch_get_item

    def counted(**wanted: Any) -> Any:
        read.append(sum(len(table["Keys"]) for table in wanted["RequestItems"].values()))
        return real(**wanted)

    monkeypatch.setattr(fleet.account.rounds_table.meta.client, "batch_get_item", counted)
    address, found, most = "/rounds/2", list[str](), 0
    while address:
        read.clear()
        page = browser.get(address)
        most = max(most, sum(read))
        found += [thing for thing in asked[-30:] if f">{thing}</a>" in page.split("Each device")[0]]
        _, _, following = page.partition("waiting=")
        address = f"/rounds/2?waiting={following.split(chr(34))[0]}" if following else ""
    assert sorted(found) == asked[-30:]
    assert most < 1200, "four pieces of the roster and what is shown, however many there are"
    for made_up in ("99-", "x", "-1", "٣-", "999999999999-a", "0-zzz"):
        browser.get(f"/rounds/2?waiting={made_up}")
