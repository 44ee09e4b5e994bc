"""Drift in the console: how many drift and who, a device's own change, and what a drift has started."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fedgrass.protocol.fleet_state import DriftRecord
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import save_settings
from tests.fedgrass.cloud.console.conftest import FLEET, NOW, Browser, Fleet, visible

NOW_MS = int(NOW.timestamp() * 1000)
WATCHED = {"action": "round", "threshold": 0.25}


@pytest.fixture
def watched(fleet: Fleet) -> Fleet:
    """35 devices that compare with the profile of round 2."""
    fleet.fill(devices=35, rounds=3, profile=2)
    save_settings(fleet.account.rounds_table, FLEET, FleetSettings().overridden({"drift": WATCHED}))
    return fleet


def looked(fleet: Fleet, **changes: Any) -> DriftRecord:
    found = {"looked_at": NOW_MS - 60_000, "alive": 33, "compared": 20, "drifted": 6, **changes}
    record = DriftRecord(fleet=FLEET, **found)
    fleet.account.rounds_table.put_item(Item=record.to_item())
    return record


def far(position: int) -> bool:
    """Whether a device of the sample has drifted from the newest profile, and is alive."""
    return position % 5 == 2 and position % 7 != 6 and position % 9 != 4 and position % 17 != 5


def test_the_fleet_page_counts_and_shows_who_drifts(watched: Fleet, browser: Browser) -> None:
    looked(watched)
    browser.wait_for_index()
    expected = {f"press-{position + 1:05d}" for position in range(35) if far(position)}
    page = browser.get("/?drift=drifted")
    assert set(re.findall(r"press-\d{5}(?=</a>)", page)) == expected
    words = visible(page)
    assert f"{len(expected)} drifted" in words
    assert f"drifted ({len(expected)})" in words
    assert "1.5 drifted" in words
    assert "no drift at the last look, 60 s ago: 6 of 33 had drifted" in words
    assert "Drift 1 began" not in words
    assert "of round 1's profile" in browser.get("/?drift=not+compared").replace("&#39;", "'")
    assert len(re.findall(r"press-\d{5}(?=</a>)", browser.get("/?drift=nonsense"))) == 25


def test_what_a_drift_has_started_is_shown_with_its_time_and_round(watched: Fleet, browser: Browser) -> None:
    record = looked(watched, number=2, begun_at=NOW_MS - 600_000, step="fit", in_a_row=3, armed=False)
    words = visible(browser.get("/"))
    assert "drift at the last look, 60 s ago: 6 of 33 had drifted, 3 looks in a row" in words
    assert "Drift 2 began at 2026-01-02 11:50:00 UTC; its round to train starts when the fleet is free" in words
    account = watched.account
    names = record.execution_name("evaluate"), record.execution_name("fit")
    for name in names:
        account.step_functions.start_execution(stateMachineArn=account.stack.state_machine_arn, name=name, input="{}")
    _end(names[0], {"rounds": [{"round": 3, "outcome": "evaluated"}]})
    page = browser.get("/")
    words = visible(page)
    assert re.search(r"evaluate the model \S+ \S+ UTC 3 evaluated", words)
    assert 'href="/rounds/3"' in page
    assert re.search(r"train \S+ \S+ UTC – running", words)
    assert "make a new profile" not in words, "it was not asked for"


def _end(name: str, output: dict[str, Any]) -> None:
    """Let moto's execution have ended."""
    from moto.stepfunctions.models import stepfunctions_backends

    backend = stepfunctions_backends["123456789012"]["us-east-1"]
    [execution] = [one for machine in backend.state_machines for one in machine.executions if one.name == name]
    execution.status, execution.output = "SUCCEEDED", json.dumps(output)


def test_a_devices_page_has_its_own_change_of_inputs_and_scores(watched: Fleet, browser: Browser) -> None:
    words = visible(browser.get("/devices/press-00003"))
    assert "its inputs 1.5 0.02" in words
    assert "the model's scores 0.1 0.01" in words.replace("&#39;", "'")
    assert "What counts: 1.5, from 0.25 on, of at least 200 examples" in words
    assert "profile of round 2 drifted" in words
    older = visible(browser.get("/devices/press-00005"))
    assert "not the fleet's newest, so none of it counts" in older.replace("&#39;", "'")
    assert "Stability index" not in visible(browser.get("/devices/press-00007"))


def test_a_fleet_that_does_not_watch_shows_nothing_of_it(fleet: Fleet, browser: Browser) -> None:
    fleet.fill(devices=3, rounds=3, profile=2)
    page = browser.get("/?drift=drifted")
    assert "rift" not in visible(page)
    assert "press-00001" in page
    save_settings(fleet.account.rounds_table, FLEET, FleetSettings().overridden({"drift": WATCHED}))
    table = fleet.account.rounds_table
    table.update_item(Key={"fleet": FLEET, "key": "state"}, UpdateExpression="REMOVE profile")
    assert "there is no profile to compare with" in visible(browser.get("/"))


def test_a_drift_that_makes_no_sense_is_none(watched: Fleet, browser: Browser) -> None:
    for thing, told in (("press-00001", "far"), ("press-00002", {"profile": 2, "rows": -1}), ("press-00003", [1])):
        watched.account.devices_table.update_item(
            Key={"fleet": FLEET, "thing": thing},
            UpdateExpression="SET drift = :told",
            ExpressionAttributeValues={":told": told},
        )
    assert browser.wait_for_index().complete
    assert "35 known" in visible(browser.get("/"))
    assert "press-00003" not in browser.get("/?drift=drifted")
