"""An open round, what the buttons do, and what is said when AWS does not answer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from fedgrass.account import Account
from fedgrass.protocol import tables
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.roster import write_roster
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.console.conftest import NOW, Browser, Fleet, browser_of, typed, visible
from tests.fixtures.doubles import double


def test_an_empty_fleet_says_what_to_do(fleet: Fleet, browser: Browser) -> None:
    assert "No device has sent a heartbeat yet" in browser.get("/")
    assert "There has been no round yet" in browser.get("/rounds/")
    assert "fedgrass model publish" in browser.get("/models/")


@pytest.fixture
def opened(fleet: Fleet) -> RoundRecord:
    """An open round of four devices."""
    record = fleet.fill(devices=4, rounds=1).record(2)
    record = record.model_copy(
        update={
            "phase": "collecting",
            "outcome": None,
            "reason": "",
            "uploaded": 1,
            "opened_at": NOW - timedelta(minutes=1),
        }
    )
    fleet.open(record)
    return record


def test_a_round_that_collects_shows_whom_it_waits_for_and_what_is_known_of_them(
    fleet: Fleet, browser: Browser
) -> None:
    record = fleet.fill(devices=70, rounds=3).record(4)
    record = record.model_copy(
        update={"phase": "collecting", "outcome": None, "aggregated_at": None, "closed_at": None}
    )
    asked = [f"press-{number:05d}" for number in (3, 4, 6)]
    write_roster(fleet.account.rounds_table, record, alive=asked, asked=asked)
    fleet.open(record)
    words = visible(browser.get("/rounds/4"))
    waited = words[words.index("Waited for") : words.index("Each device")]
    assert "press-00003 idle" in waited
    assert "press-00004 no: memory: 92 % used, the limit is 85 %" in waited
    assert "press-00006 silent for 1200 s" in waited
    assert "Waited for" not in visible(browser.get("/rounds/3"))


def test_the_open_round_is_shown_by_phase_and_goes_on_live(fleet: Fleet, browser: Browser, opened: RoundRecord) -> None:
    page = browser.get("/rounds/")
    assert 'data-live="/rounds/live?round=2"' in page
    assert "1 of 4 that end the collecting" in visible(page)
    tables_round = fleet.account.rounds_table
    tables_round.put_item(
        Item=opened.model_copy(
            update={"phase": "rolling_out", "outcome": "released", "active": 3, "uploaded": 4}
        ).to_item()
    )
    fragment = browser.get("/rounds/live?round=2")
    assert "<html" not in fragment
    assert "1.2.0 active on 3 of 4" in visible(fragment)
    assert 'class="now" aria-current="step">Roll out' in fragment


def test_the_live_panel_has_the_page_loaded_again_when_something_began_or_ended(
    fleet: Fleet, browser: Browser, opened: RoundRecord
) -> None:
    browser.get("/rounds/live", 205)
    browser.get("/rounds/live?round=1", 205)
    browser.get("/rounds/live?round=2", 200)
    fleet.account.rounds_table.update_item(
        Key={"fleet": "mill", "key": "state"},
        UpdateExpression="REMOVE #open",
        ExpressionAttributeNames={"#open": "open"},
    )
    browser.get("/rounds/live?round=2", 205)
    browser.get("/rounds/live", 204)


def test_a_round_is_started_and_followed(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=4, rounds=1)
    answer = browser.post("/rounds/start", rounds="3")
    assert answer.status_code == 303
    assert answer.location.startswith("/rounds/?execution=")
    machine = fleet.account.stack.state_machine_arn
    [execution] = fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]
    assert fleet.input_of(execution["executionArn"]) == {"rounds": 3}
    page = visible(browser.get(answer.location))
    assert "Round 2 is starting" in page
    assert "A round is starting" in page
    fleet.account.step_functions.stop_execution(executionArn=execution["executionArn"])
    assert browser.client.get(answer.location.replace("/rounds/?", "/rounds/live?")).status_code == 205


def test_a_start_with_other_settings_passes_only_the_differences(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=4, rounds=1)
    stored = tables.load_settings(fleet.account.rounds_table, "mill").overridden({"fit": {"learning_rate": 0.05}})
    tables.save_settings(fleet.account.rounds_table, "mill", stored)
    form = {"fit.epochs": "7", "fit.learning_rate": "0.05", "strategy.name": "median"}
    answer = browser.post("/rounds/new", "/rounds/new", **{**typed(stored), **form})
    assert answer.status_code == 303, visible(answer.text)
    machine = fleet.account.stack.state_machine_arn
    [execution] = fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]
    assert fleet.input_of(execution["executionArn"]) == {"fit": {"epochs": 7}, "strategy": {"name": "median"}}
    assert tables.load_settings(fleet.account.rounds_table, "mill") == stored


def test_a_second_start_is_refused_with_the_open_rounds_number(
    fleet: Fleet, browser: Browser, opened: RoundRecord
) -> None:
    assert browser.post("/rounds/start", "/rounds/", rounds="1").status_code == 303
    assert "round 2 of fleet" in visible(browser.get("/rounds/"))
    machine = fleet.account.stack.state_machine_arn
    assert len(fleet.account.step_functions.list_executions(stateMachineArn=machine)["executions"]) == 1


def test_the_open_round_is_cancelled(fleet: Fleet, browser: Browser, opened: RoundRecord) -> None:
    assert browser.post("/runs/2/end").status_code == 303
    assert "Round 2 is being cancelled" in visible(browser.get("/rounds/"))
    state = tables.load_state(fleet.account.rounds_table, "mill")
    assert state.open is not None
    described = fleet.account.step_functions.describe_execution(executionArn=state.open.execution)
    assert described["status"] == "ABORTED"


class Waiting:
    """Step Functions with one task that waits under a token, and is answered once."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.answers: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send_task_success(self, **answer: Any) -> None:
        if self.answers:
            raise ClientError({"Error": {"Code": "TaskTimedOut", "Message": "answered"}}, "SendTaskSuccess")
        self.answers.append(answer)


def test_the_collecting_is_ended_with_what_there_is_once(
    fleet: Fleet, browser: Browser, opened: RoundRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(fleet.account.step_functions)
    monkeypatch.setitem(fleet.account.__dict__, "step_functions", waiting)

    def become(**changes: Any) -> None:
        record = opened.model_copy(update={"phase": "collecting", "joined": 0, **changes})
        fleet.account.rounds_table.put_item(Item=record.to_item())

    def press() -> str:
        assert browser.post("/rounds/aggregate").status_code == 303
        return visible(browser.get("/rounds/"))

    enough = opened.settings.min_updates
    become(uploaded=enough - 1, collect_token="t")
    assert f"has {enough - 1} updates, and {enough} are needed" in press()
    become(uploaded=enough, collect_token=None)
    assert "only just been opened" in press()
    assert waiting.answers == []
    become(uploaded=enough - 1, joined=1, collect_token="t")
    for _ in range(2):  # pressed twice, it does no more
        assert f"Round 2 goes on with {enough} updates" in press()
    assert waiting.answers == [{"taskToken": "t", "output": f'{{"uploaded": {enough - 1}}}'}]
    become(phase="aggregating", uploaded=enough)
    assert "does not collect updates any more" in press()


def test_there_is_nothing_to_aggregate_without_an_open_round(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=1, rounds=1)
    browser.post("/rounds/aggregate")
    assert "has no open round to aggregate" in visible(browser.get("/rounds/"))


def test_a_cancellation_without_an_open_round_says_so(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=1, rounds=1)
    browser.post("/runs/1/end")
    assert "has no open round to cancel" in visible(browser.get("/rounds/"))


def test_a_held_model_waits_for_a_decision(fleet: Fleet, browser: Browser) -> None:
    record = fleet.fill(devices=3, rounds=1).record(2)
    held = record.model_copy(update={"outcome": "held", "reason": "accuracy fell"})
    fleet.account.rounds_table.put_item(Item=held.to_item())
    fleet.account.rounds_table.update_item(
        Key={"fleet": "mill", "key": "state"},
        UpdateExpression="SET #last = :two",
        ExpressionAttributeNames={"#last": "last"},
        ExpressionAttributeValues={":two": 2},
    )
    page = visible(browser.get("/models/"))
    assert "Held: waiting for a decision" in page
    assert "accuracy fell" in page
    assert "Deploy 1.2.0 to the fleet" in page
    # Its parameters were never written here, and that is what the operator is told.
    browser.post("/models/1.2.0/release", "/models/")
    assert "1.2.0" in visible(browser.get("/models/"))


def test_the_base_of_the_next_round_can_be_released_and_an_earlier_one_brought_back(
    fleet: Fleet, browser: Browser
) -> None:
    sample = fleet.fill(devices=3, rounds=3)
    settings = FleetSettings().overridden({"rollout": {"canary_group": "canaries"}})
    for number in (2, 3):
        advanced = sample.record(number).model_copy(update={"outcome": "advanced", "settings": settings})
        fleet.account.rounds_table.put_item(Item=advanced.to_item())
    page = browser.get("/models/")
    assert "Deploy 1.3.0 to the fleet, without its canaries" in visible(page)
    assert page.count("/models/1.3.0/") == 1
    assert page.count("/models/1.2.0/roll-back") == page.count("/models/1.1.0/roll-back") == 1
    assert "/models/1.2.0/release" not in page


class Broken:
    """A session whose every client fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def client(self, *_: object, **__: object) -> None:
        raise self._error

    resource = client


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not allowed to"}}, "DescribeStacks"),
            502,
            "DescribeStacks: not allowed to",
        ),
        (EndpointConnectionError(endpoint_url="https://nowhere"), 503, "https://nowhere"),
    ],
)
@pytest.mark.parametrize("address", ["/", "/rounds/", "/models/", "/settings/"])
def test_aws_that_refuses_or_is_away_is_a_page_that_says_so(
    error: Exception, status: int, says: str, address: str
) -> None:
    page = visible(browser_of(Account("mill", double(Broken(error)))).get(address, status))
    assert says in page
    assert "Traceback" not in page
