"""A run's page: how far it is and why it is over, whatever its length; and what its buttons do, once."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.cloud.console.runs import _spread
from fedgrass.protocol import tables
from fedgrass.protocol.items import Table
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import RunPiece, RunRounds
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.console.conftest import FLEET, NOW, Browser, Fleet, typed, visible


class Executions:
    """Step Functions, of which some executions are made up."""

    def __init__(self, real: Any, told: dict[str, dict[str, Any]]) -> None:
        self._real, self._told = real, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:  # noqa: N803 - boto3's name
        told = self._told.get(executionArn)
        return told if told is not None else dict(self._real.describe_execution(executionArn=executionArn))


@pytest.fixture
def told(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What Step Functions says of executions that there are not."""
    told: dict[str, dict[str, Any]] = {}
    monkeypatch.setitem(fleet.account.__dict__, "step_functions", Executions(fleet.account.step_functions, told))
    return told


def last_round(fleet: Fleet) -> RoundRecord:
    number = tables.load_state(fleet.account.rounds_table, FLEET).last
    return tables.load_round(fleet.account.rounds_table, FLEET, number)


def started(fleet: Fleet) -> list[dict[str, Any]]:
    """Inputs of the executions that were started, the newest first."""
    machine = fleet.account.stack.state_machine_arn
    found = fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]
    return [fleet.input_of(execution["executionArn"]) for execution in found]


def once_of(page: str) -> str:
    found = re.search(r'name="once" value="(\w+)"', page)
    assert found
    return found[1]


def test_a_run_shows_how_far_it_is_what_it_goes_by_and_its_rounds(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=30, run=30)
    record = last_round(fleet)
    fleet.open(record.model_copy(update={"phase": "collecting", "outcome": None, "closed_at": None}))
    page = browser.get("/runs/1")
    words = visible(page)
    assert "Run since round 1 goes on" in words
    assert "29 of at most 30" in words
    assert f"{record.run.standing.since if record.run else None} of 20 in a row no better than the best" in words
    assert "30 of 60 since its first round opened" in words
    assert "target 97.5 %" in words
    assert re.search(r"best 9\d\.", words)
    assert words.count("best") >= 3
    assert "until.target 0.975" in words
    assert 'href="/rounds/6"' in page
    assert 'href="/rounds/5"' not in page
    assert 'href="/rounds/5"' in browser.get("/runs/1?page=2")
    assert page.count("<svg") == 2, "its figure, and the learning rate that its schedule changes"
    assert "Round 30 is open" in words


def test_the_rounds_of_a_run_lead_to_its_page(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=7, run=4)
    assert 'href="/runs/5">3 of 4</a>' in browser.get("/rounds/")
    assert 'href="/runs/5">3 of at most 4 since round 5</a>' in browser.get("/rounds/7")
    assert browser.client.get("/runs/7").location == "/runs/5"
    assert "there is no record of it" in browser.get("/runs/9", 404)
    record = last_round(fleet)
    fleet.open(record.model_copy(update={"phase": "collecting", "outcome": None, "closed_at": None}))
    for address in ("/", "/rounds/"):
        assert 'href="/runs/5">its run</a>' in browser.get(address)


def test_a_round_of_an_earlier_release_stands_alone(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=1, rounds=3)
    words = visible(browser.get("/runs/2"))
    assert "It has had all its rounds." in words
    assert "1 of 1" in words


class Counted:
    """A client that notes which keys are read in batches."""

    def __init__(self, real: Any) -> None:
        self._real, self.keys = real, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def batch_get_item(self, **wanted: Any) -> Any:
        self.keys += sum(len(table["Keys"]) for table in wanted["RequestItems"].values())
        return self._real.batch_get_item(**wanted)


def test_a_long_runs_page_reads_no_more_than_it_shows(
    fleet: Fleet, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = fleet.fill(devices=1, rounds=1, run=1)
    table: Table = fleet.account.rounds_table
    first = sample.record(1)
    shown: set[int] = set()
    # Of 3,000 rounds only those are there that a page can show: what it reads is counted.
    pieces = [
        RunPiece(fleet=FLEET, run=1, first=number, last=number + 499, execution=f"arn:…:{number}")
        for number in range(1, 3000, 500)
    ]
    rounds = RunRounds(tuple(pieces))
    shown.update(_spread(rounds), range(2976, 3001), range(1, 26))
    for number in shown:
        record = sample.record(number).model_copy(update={"run": first.run, "settings": first.settings})
        table.put_item(Item=record.to_item())
    for piece in pieces:
        table.put_item(Item=piece.to_item())
    counted = Counted(table.meta.client)
    monkeypatch.setattr(table.meta, "client", counted)
    page = browser.get("/runs/1?page=9999")
    assert 'href="/rounds/1"' in page
    assert "2,976–3,000 of 3,000" in page or "2976–3000 of 3,000" in page
    assert visible(browser.get("/runs/1")).count("to 3000") == 1
    assert counted.keys <= 2 * 126
    assert page.count("<circle") <= 3 * 100


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 700)), min_size=1, max_size=6))
def test_positions_lead_to_the_rounds_of_the_pieces_in_their_order(gaps: list[tuple[int, int]]) -> None:
    pieces: list[RunPiece] = []
    numbers: list[int] = []
    at = 0
    for gap, length in gaps:
        pieces.append(RunPiece(fleet=FLEET, run=1, first=at + gap, last=at + gap + length - 1, execution="e"))
        numbers += range(at + gap, at + gap + length)
        at += gap + length - 1
    rounds = RunRounds(tuple(pieces))
    assert rounds.count == len(numbers)
    assert rounds.at(range(rounds.count)) == numbers
    spread = _spread(rounds)
    assert len(spread) <= 100
    assert spread == sorted(set(spread))
    assert {numbers[0], numbers[-1]} <= set(spread) <= set(numbers)


@pytest.mark.parametrize(
    ("described", "word", "why"),
    [
        (
            {"status": "SUCCEEDED", "output": '{"ended": "enough <is> enough", "next": ""}'},
            "ended",
            "enough <is> enough",
        ),
        ({"status": "SUCCEEDED", "output": '{"ended": "", "next": "following"}'}, "goes on", ""),
        ({"status": "ABORTED", "cause": "the power goes"}, "cancelled", "the power goes"),
        (
            {"status": "FAILED", "cause": '{"errorType": "RoundRefusedError", "errorMessage": "too few"}'},
            "failed",
            "RoundRefusedError: too few",
        ),
        ({"status": "SUCCEEDED", "output": '["not an object"]'}, "over", ""),
        ({}, "over", ""),
    ],
)
def test_a_run_that_is_over_says_why(
    fleet: Fleet, browser: Browser, told: dict[str, dict[str, Any]], described: dict[str, Any], word: str, why: str
) -> None:
    fleet.fill(devices=1, rounds=3, run=30)
    told[last_round(fleet).execution] = described
    told["following"] = {"status": "RUNNING"}
    page = browser.get("/runs/1")
    assert f"Run since round 1 {word}" in visible(page)
    assert why.replace("<", "&lt;").replace(">", "&gt;") in page
    assert ("/runs/1/resume" in page) == (word != "goes on")


def test_a_run_starts_with_its_ends_and_what_is_wrong_is_said_at_its_field(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=1)
    page = browser.get("/runs/new")
    assert "fit.epochs" not in page
    form = {**typed(FleetSettings()), "rounds": "40", "until.target": "0.9", "until.patience": "5"}
    wrong = browser.post("/runs/new", "/runs/new", **{**form, "until.patience": "-1"})
    assert wrong.status_code == 422
    assert "greater than or equal to 0" in wrong.text.split('id="until.patience-error"')[1].split("</p>")[0]
    assert started(fleet) == []
    answer = browser.post("/runs/new", "/runs/new", **form, once=once_of(page))
    assert answer.status_code == 303
    assert started(fleet) == [{"rounds": 40, "until": {"target": 0.9, "patience": 5}}]


@pytest.mark.parametrize("address", ["/rounds/start", "/rounds/new", "/runs/new"])
def test_a_form_that_is_sent_twice_starts_one_execution(fleet: Fleet, browser: Browser, address: str) -> None:
    fleet.fill(devices=2, rounds=1)
    page = "/rounds/" if address == "/rounds/start" else address
    form = {**typed(FleetSettings()), "rounds": "3", "once": once_of(browser.get(page))}
    first, second = (browser.post(address, page, **form) for _ in range(2))
    assert first.location == second.location
    # Even with other words in it.
    assert browser.post(address, page, **{**form, "rounds": "4"}).location == first.location
    assert started(fleet) == [{"rounds": 3}]
    assert "This form was sent before" in visible(browser.get("/rounds/"))
    # Nobody chooses an execution's name.
    assert browser.post(address, page, **{**form, "once": "../x"}).location != first.location


def test_two_copies_at_the_same_moment_start_one_execution(
    fleet: Fleet, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.fill(devices=2, rounds=1)

    def exists(**_: object) -> None:
        raise ClientError({"Error": {"Code": "ExecutionAlreadyExists", "Message": "it does"}}, "StartExecution")

    monkeypatch.setattr(fleet.account.step_functions, "start_execution", exists)
    once = once_of(browser.get("/rounds/"))
    answer = browser.post("/rounds/start", rounds="3", once=once)
    assert answer.location == f"/rounds/?execution=console-{once}"


@pytest.fixture
def cancelled(fleet: Fleet, told: dict[str, dict[str, Any]]) -> RoundRecord:
    """The third round of a run of thirty, which was cancelled; a round of somebody else's came after it."""
    sample = fleet.fill(devices=2, rounds=3, run=30)
    third = last_round(fleet).model_copy(update={"outcome": "cancelled", "reason": "the power goes"})
    fleet.account.rounds_table.put_item(Item=third.to_item())
    given = {"rounds": 30, "until": {"patience": 20}, "Comment": "mine"}
    told[third.execution] = {"status": "ABORTED", "cause": "the power goes", "input": json.dumps(given)}
    fourth = sample.record(4).model_copy(update={"run": None, "settings": FleetSettings()})
    fleet.account.rounds_table.put_item(Item=fourth.to_item())
    fleet.account.rounds_table.update_item(
        Key={"fleet": FLEET, "key": "state"},
        UpdateExpression="SET #last = :four",
        ExpressionAttributeNames={"#last": "last"},
        ExpressionAttributeValues={":four": 4},
    )
    return third


def test_a_run_is_resumed_with_its_own_settings_and_those_given_over_them(
    fleet: Fleet, browser: Browser, cancelled: RoundRecord
) -> None:
    assert "the power goes" in visible(browser.get("/runs/1"))
    page = browser.get("/runs/1/resume")
    assert re.search(r'name="rounds"[^>]*value="30"', page)
    assert re.search(r'name="until.patience"[^>]*value="20"', page)
    own = FleetSettings().overridden({"rounds": 30, "until": {"patience": 20}})
    form = {**typed(own), "until.hours": "1000000"}
    refused = browser.post("/runs/1/resume", "/runs/1/resume", **{**form, "rounds": "2"}, once=once_of(page))
    assert refused.status_code == 409
    assert "has had its 2 rounds; give it more" in visible(refused.text)
    assert 'value="1000000"' in refused.text, "what was typed stays"
    once = once_of(refused.text)
    answers = [browser.post("/runs/1/resume", "/runs/1/resume", **form, once=once) for _ in range(2)]
    assert answers[0].status_code == 303, visible(answers[0].text)
    assert {answer.location for answer in answers} == {f"/runs/1?execution=console-{once}"}
    [begun] = started(fleet)
    assert (begun["rounds"], begun["until"]) == (30, {"patience": 20, "hours": 1e6})
    assert "Comment" not in begun
    assert cancelled.run is not None
    assert begun["run"]["standing"]["done"] == cancelled.run.standing.done == 2
    assert "A round is starting" in visible(browser.get(answers[0].location))


def test_a_run_whose_start_is_forgotten_says_so(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=3, run=30)
    assert "has forgotten its execution" in visible(browser.get("/runs/1/resume", 409))


def test_a_run_is_ended_with_a_reason_and_only_the_one_that_is_meant(
    fleet: Fleet, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.fill(devices=2, rounds=6, run=3)
    record = last_round(fleet)
    execution = fleet.open(record.model_copy(update={"phase": "collecting", "outcome": None, "closed_at": None}))
    page = "/runs/4"
    assert "End the run" in visible(browser.get(page))
    # A page of the run before, that was left open.
    browser.post("/runs/1/end", page, reason="old")
    assert "the run since round 1 of fleet &#39;mill&#39; has ended" in visible(browser.get("/runs/1"))
    client = fleet.account.step_functions
    assert client.describe_execution(executionArn=execution)["status"] == "RUNNING"
    stopped: list[dict[str, Any]] = []
    stop = client.stop_execution

    def noted(**how: Any) -> Any:  # moto forgets the cause
        stopped.append(how)
        return stop(**how)

    monkeypatch.setattr(client, "stop_execution", noted)
    assert browser.post("/runs/4/end", page, reason="good enough").location == page
    assert [(how["executionArn"], how["cause"]) for how in stopped] == [(execution, "good enough")]
    assert "and its run is being cancelled" in visible(browser.get(page))


def test_between_two_rounds_the_run_is_shown_and_can_be_ended(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=2, rounds=2, run=3)
    record = last_round(fleet)
    execution = fleet.open(record)
    fleet.account.rounds_table.update_item(
        Key={"fleet": FLEET, "key": "state"},
        UpdateExpression="REMOVE #open SET #reserved = :execution",
        ExpressionAttributeNames={"#open": "open", "#reserved": "reserved"},
        ExpressionAttributeValues={":execution": execution},
    )
    words = visible(browser.get("/rounds/"))
    assert "The next round of the run since round 1 is about to open" in words
    assert "Start a run" not in words
    browser.get("/rounds/live?before=2", 204)
    browser.get("/rounds/live", 205)
    browser.post("/runs/1/end", "/rounds/")
    assert fleet.account.step_functions.describe_execution(executionArn=execution)["status"] == "ABORTED"
    browser.get("/rounds/live?before=2", 205)
    assert "Start a run" in visible(browser.get("/rounds/"))


def test_hours_of_a_run_that_is_over_stand_still(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=1, rounds=2, run=2)
    record = last_round(fleet)
    assert record.run is not None
    closed = record.run.started_at + timedelta(hours=1.5)
    assert closed < NOW
    fleet.account.rounds_table.put_item(Item=record.model_copy(update={"closed_at": closed}).to_item())
    assert "1.5 of 4 since its first round opened" in visible(browser.get("/runs/1"))
