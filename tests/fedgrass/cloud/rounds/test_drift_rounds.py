"""Drift from heartbeats to rounds: who counts, what starts, once each, and not again before the fleet was calm."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedgrass.cli.drift import facts, shown
from fedgrass.cloud.rounds.abort_round import ExecutionEnd, execution_ended
from fedgrass.cloud.rounds.watch_fleet import watch_fleet
from fedgrass.errors import MessageError
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.drift import Drift, Standing
from fedgrass.protocol.drift_settings import DriftSettings
from fedgrass.protocol.fleet_state import DriftRecord
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import Feature, Profile
from fedgrass.protocol.records import Device
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_drift, load_settings, save_settings
from fedgrass.protocol.writes import put_item
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet, FleetFactory
from tests.fedgrass.cloud.rounds.test_metrics import written
from tests.fedgrass.cloud.rounds.test_statistics_rounds import keep

QUARTER = 900
THINGS = [f"d{number}" for number in range(5)]


def measured(inputs: float, **changes: Any) -> Drift:
    return Drift(**{"profile": 1, "rows": 500, "inputs": inputs, **changes})


def fleet_of(make_fleet: FleetFactory, **drift: Any) -> Fleet:
    fleet: Fleet = make_fleet(FleetSettings().overridden({"drift": {"action": "round", "share": 0.6, **drift}}))
    keep(fleet)
    return fleet


def look(fleet: Fleet, drifted: int, *, of: int = 5, after: float = QUARTER) -> DriftRecord:
    """A quarter of an hour passes, devices beat, and the fleet is looked at."""
    fleet.pass_time(after)
    fleet.heartbeats(*THINGS[:drifted], drift=measured(2.0))
    fleet.heartbeats(*THINGS[drifted:of], drift=measured(0.01))
    watch_fleet(fleet.services)
    return load_drift(fleet.rounds, FLEET)


def started(fleet: Fleet) -> list[str]:
    return [request["task"] for request in fleet.step_functions.started.values()]


def end(fleet: Fleet, record: DriftRecord, status: str = "SUCCEEDED") -> None:
    assert record.execution is not None
    fleet.step_functions.statuses[record.execution] = status


def test_devices_are_told_of_the_profile_only_where_drift_is_watched(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, action="alarm")
    fleet.heartbeats("a", "b", "c")
    fleet.open(task="evaluate")
    told = Announcement.decode(fleet.announcement or b"").watch
    assert told is not None
    assert told.round == 1


@pytest.mark.parametrize(("action", "graph"), [("off", "a" * 64), ("round", "b" * 64)])
def test_they_are_told_nothing_otherwise(make_fleet: FleetFactory, action: str, graph: str) -> None:
    fleet = fleet_of(make_fleet, action=action)
    keep(fleet, graph_sha256=graph)
    fleet.heartbeats("a", "b", "c")
    fleet.open()
    assert Announcement.decode(fleet.announcement or b"").watch is None


def test_drift_evaluates_then_profiles_then_trains_and_not_again_before_the_fleet_was_calm(
    make_fleet: FleetFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = fleet_of(make_fleet)
    look(fleet, 0)
    look(fleet, 3)
    assert started(fleet) == []  # one look is none yet
    record = look(fleet, 3)
    assert started(fleet) == ["evaluate"]
    assert (record.step, record.number, record.armed) == ("evaluate", 1, False)
    record = look(fleet, 4)
    assert started(fleet) == ["evaluate"]  # it runs
    for step in ("statistics", "fit"):
        end(fleet, record, "FAILED" if step == "statistics" else "SUCCEEDED")
        record = look(fleet, 4)
        assert record.step == step
    assert started(fleet) == ["evaluate", "statistics", "fit"]
    assert all(request["rounds"] == 1 for request in fleet.step_functions.started.values())
    end(fleet, record)
    # Drift that stays, for eight days: nothing more starts.
    for _ in range(4):
        record = look(fleet, 5, after=2 * 86_400)
    assert (record.step, len(fleet.step_functions.started)) == (None, 3)
    look(fleet, 2)  # not below half of what begins a drift
    look(fleet, 4)
    assert not look(fleet, 4).armed
    look(fleet, 1)
    look(fleet, 3)
    assert look(fleet, 3).number == 2
    assert len(fleet.step_functions.started) == 4
    figures = [line for line in written(capsys.readouterr().out) if "FleetDrifted" in line]
    assert [(line["DevicesDrifted"], line["FleetDrifted"]) for line in figures[:3]] == [(0, 0), (3, 1), (3, 1)]


def test_what_is_started_opens_rounds_and_the_last_announces_the_new_profile(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    tasks = []
    record = look(fleet, 5)
    for _ in range(3):
        assert record.execution is not None
        name = record.execution.rpartition(":")[2]
        opened = fleet.open(execution=record.execution, **fleet.step_functions.started[name])
        tasks.append(opened.settings.task)
        if opened.settings.task == "statistics":
            keep(fleet, round=9)
        watched = Announcement.decode(fleet.announcement or b"").watch
        execution_ended(fleet.services, ExecutionEnd(executionArn=record.execution, status="FAILED"))
        end(fleet, record, "FAILED")
        record = look(fleet, 5)
    assert tasks == ["evaluate", "statistics", "fit"]
    assert watched is not None
    assert watched.round == 9
    assert record.step is None


def test_swinging_devices_start_something_once_in_a_cool_down_at_most(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, action="evaluate", cool_down_hours=24, looks=1)
    for number in range(20):
        record = look(fleet, 4 - number % 2 * 4, of=4, after=3 * 3600)
        if record.execution is not None:
            end(fleet, record)
    assert len(fleet.step_functions.started) == 3
    assert set(started(fleet)) == {"evaluate"}


@pytest.mark.parametrize("liars", [1, 2])
def test_a_few_liars_start_nothing_even_in_a_small_fleet(make_fleet: FleetFactory, liars: int) -> None:
    fleet = fleet_of(make_fleet)
    for _ in range(5):
        fleet.pass_time(QUARTER)
        fleet.heartbeats(*THINGS[:liars], drift=measured(100.0, rows=10**15))
        fleet.heartbeats(*THINGS[liars:4])
        watch_fleet(fleet.services)
    assert started(fleet) == []


@pytest.mark.parametrize(
    "odd",
    [{"profile": 2}, {"rows": 199}, {"inputs": 0.2499}],
)
def test_figures_of_another_profile_of_few_examples_or_below_the_threshold_do_not_count(
    make_fleet: FleetFactory, odd: dict[str, Any]
) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    fleet.heartbeats(*THINGS, drift=measured(**{"inputs": 2.0, **odd}))
    watch_fleet(fleet.services)
    assert load_drift(fleet.rounds, FLEET).drifted == 0
    fleet.heartbeats(*THINGS, drift=measured(0.25, rows=200))
    watch_fleet(fleet.services)
    assert load_drift(fleet.rounds, FLEET).drifted == len(THINGS)


def test_silent_devices_and_unlisted_silos_do_not_count(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    fleet.heartbeats(*THINGS[:3], drift=measured(2.0))
    fleet.pass_time(1000)
    fleet.heartbeats(*(f"123456789012-silo{n}" for n in range(9)), drift=measured(2.0))
    fleet.heartbeats(*THINGS[3:], drift=measured(0.0))
    watch_fleet(fleet.services)
    found = load_drift(fleet.rounds, FLEET)
    assert (found.alive, found.drifted) == (2, 0)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, True),
        ({"figures": "inputs"}, False),
        ({"figures": "scores"}, True),
        ({"against": "device"}, True),
        ({"against": "device", "figures": "scores"}, False),
    ],
)
def test_the_settings_say_which_figure_counts(settings: dict[str, Any], counts: bool) -> None:
    drift = measured(0.1, scores=1.0, inputs_change=0.5, scores_change=None)
    assert drift.has_drifted(DriftSettings(action="alarm", **settings)) is counts


@pytest.mark.parametrize(
    "wrong", [{"inputs": -1}, {"inputs": 101}, {"inputs": float("nan")}, {"rows": -1}, {"distance": 1e7}]
)
def test_a_heartbeat_with_a_figure_that_cannot_be_is_refused(fleet: Fleet, wrong: dict[str, Any]) -> None:
    beat = Heartbeat(fleet=FLEET, thing="a", sent_at=fleet.now, interval_seconds=30)
    drift = {"profile": 1, "rows": 1, "inputs": 0.0, **wrong}
    with pytest.raises(MessageError, match="drift"):
        Heartbeat.decode(json.dumps({**json.loads(beat.encode()), "drift": drift}).encode())


def test_nothing_starts_while_somebody_holds_the_fleet_and_it_starts_afterwards(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    fleet.heartbeats("a", "b", "c")
    record = fleet.open()
    assert look(fleet, 5).step == "evaluate"
    assert started(fleet) == []
    execution_ended(fleet.services, ExecutionEnd(executionArn=record.execution, status="ABORTED"))
    look(fleet, 5)
    assert started(fleet) == ["evaluate"]


def test_what_waits_is_dropped_when_the_devices_are_calm_or_the_setting_is_taken_back(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1, cool_down_hours=1)
    fleet.heartbeats("a", "b", "c")
    fleet.open()
    assert look(fleet, 5).step == "evaluate"
    assert look(fleet, 0).step is None
    assert look(fleet, 5, after=7200).step == "evaluate"
    save_settings(fleet.rounds, FLEET, FleetSettings())
    assert look(fleet, 5).step is None
    assert started(fleet) == []


@pytest.mark.parametrize("silence", ["restarted", "new profile"])
def test_devices_that_have_not_compared_yet_are_not_calm(make_fleet: FleetFactory, silence: str) -> None:
    fleet = fleet_of(make_fleet, looks=1, cool_down_hours=1)
    fleet.heartbeats("a", "b", "c")
    held = fleet.open()
    assert look(fleet, 5).step == "evaluate"
    # A trainer that was restarted, as by a deployment, has compared nothing yet; nor has anybody with a profile just made.
    fleet.pass_time(QUARTER)
    if silence == "restarted":
        fleet.heartbeats(*THINGS)
    else:
        keep(fleet, round=9)
    watch_fleet(fleet.services)
    assert load_drift(fleet.rounds, FLEET).step == "evaluate"
    execution_ended(fleet.services, ExecutionEnd(executionArn=held.execution, status="ABORTED"))
    watch_fleet(fleet.services)
    end(fleet, load_drift(fleet.rounds, FLEET))
    save_settings(fleet.rounds, FLEET, FleetSettings().overridden({"drift": {"action": "evaluate"}}))
    watch_fleet(fleet.services)
    found = load_drift(fleet.rounds, FLEET)
    assert (found.compared, found.step, found.armed) == (0, None, False)


@pytest.mark.parametrize("lost", ["start", "note"])
def test_a_look_that_dies_starts_its_round_once_all_the_same(
    make_fleet: FleetFactory, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    if lost == "start":
        fleet.step_functions.fails = 1
    else:
        writes = [0]

        def dies(table: Any, **arguments: Any) -> Any:
            writes[0] += 1
            if writes[0] == 2:
                raise ClientError({"Error": {"Code": "InternalServerError", "Message": ""}}, "PutItem")
            return put_item(table, **arguments)

        monkeypatch.setattr("fedgrass.cloud.rounds.drift.put_item", dies)
    with pytest.raises(ClientError):
        look(fleet, 5)
    # The one that was started may even have ended before anybody looks again.
    for arn in fleet.step_functions.statuses:
        if ":drift-" in arn:
            fleet.step_functions.statuses[arn] = "SUCCEEDED"
    record = look(fleet, 5)
    assert started(fleet) == ["evaluate"]
    assert record.execution is not None


def test_of_two_looks_at_once_one_acts(make_fleet: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    before = look(fleet, 0)
    look(fleet, 5)
    assert started(fleet) == ["evaluate"]
    # The other had read the table before.
    monkeypatch.setattr("fedgrass.cloud.rounds.drift.load_drift", lambda *_: before)
    after = load_drift(fleet.rounds, FLEET)
    watch_fleet(fleet.services)
    assert load_drift(fleet.rounds, FLEET) == after
    assert started(fleet) == ["evaluate"]


def test_the_terminal_says_who_has_drifted_of_which_feature_and_what_follows(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    record = look(fleet, 4)
    feature = Feature(name="pressure", count=1, missing=0, histogram=(0, 1, 0))
    profile = Profile(
        fleet=FLEET,
        round=1,
        made_at=fleet.now,
        model="1.0.0",
        graph_sha256="a" * 64,
        devices=3,
        examples=1,
        features=(feature,),
    )
    alive = [member.heartbeat for member in fleet_members(fleet.services.devices, FLEET) if member.heartbeat]
    settings = load_settings(fleet.rounds, FLEET).drift
    said = alive, settings, profile, Standing(5, 5, 4), record
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown(*said))
    text = console.export_text()
    assert "4 have drifted from it: drift" in text
    assert "Drift 1: its round evaluate runs." in text
    assert text.count("pressure") == 5
    assert len([line for line in text.splitlines() if line.endswith("drifted")]) == 4
    assert "as they were" not in text
    told = facts(*said)
    assert (told["drifted"], told["is_drift"], told["devices"][0]["feature"]) == (4, True, "pressure")
    json.dumps(told)


def test_the_terminal_says_why_nothing_starts_again_and_that_devices_only_differ(make_fleet: FleetFactory) -> None:
    fleet = fleet_of(make_fleet, looks=1)
    told: dict[str, Any] = {
        "fleet": FLEET,
        "round": 1,
        "made_at": fleet.now,
        "model": "1.0.0",
        "graph_sha256": "a" * 64,
    }
    feature = Feature(name="pressure", count=1, missing=0, histogram=(0, 1, 0))
    profile = Profile(**told, devices=3, examples=1, features=(feature,))
    began = int(fleet.now.timestamp() * 1000)
    fleet.heartbeats("a", "b", "c", drift=measured(2.0, inputs_change=0.0, scores=0.1, scores_change=0.1))
    fleet.heartbeats("d", drift=measured(2.0, inputs_change=1.0))
    fleet.heartbeats("few", drift=measured(2.0, rows=100))
    alive = [member.heartbeat for member in fleet_members(fleet.services.devices, FLEET) if member.heartbeat]

    def said(against: str, *, armed: bool) -> str:
        settings = load_settings(fleet.rounds, FLEET).drift.model_copy(update={"against": against})
        record = DriftRecord(fleet=FLEET, looked_at=1, number=1, begun_at=began, armed=armed)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(shown(alive, settings, profile, Standing(5, 5, 4), record))
        return console.export_text()

    rested = fleet.now + timedelta(hours=24)
    first = said("fleet", armed=False)
    assert "3 of these 4 are as they were" in first
    assert f"the next may from {rested:%Y-%m-%d %H:%M} UTC on, once the devices were calm." in first
    assert [line.split()[0] for line in first.splitlines() if "fewer than 200 examples" in line] == ["few"]
    second = said("device", armed=True)
    assert "as they were" not in second
    assert f"{rested:%H:%M} UTC on." in second


def test_a_fleet_that_does_not_watch_writes_nothing(fleet: Fleet) -> None:
    fleet.heartbeats("a", "b", "c", drift=measured(2.0))
    watch_fleet(fleet.services)
    assert load_drift(fleet.rounds, FLEET).looked_at == 0


@given(
    alive=st.integers(0, 2000),
    share=st.floats(0.001, 1, exclude_min=True),
    least=st.integers(2, 50),
    drifted=st.integers(0, 2000),
)
def test_a_drift_is_never_calm_and_needs_share_and_number(alive: int, share: float, least: int, drifted: int) -> None:
    drifted = min(alive, drifted)
    settings, standing = DriftSettings(share=share, min_devices=least), Standing(alive, alive, drifted)
    assert not (standing.is_drift(settings) and standing.is_calm(settings))
    if standing.is_drift(settings):
        assert drifted >= least
        assert drifted >= share * alive * (1 - 1e-6) - 1e-6
    assert Standing(alive, alive, 0).is_calm(settings) is (alive >= least)
    assert not Standing(alive, min(alive, least - 1), 0).is_calm(settings)


def test_a_device_reads_back_from_the_table_with_its_figures(fleet: Fleet) -> None:
    fleet.heartbeats("a", drift=measured(0.5, scores=1e-9))
    item = fleet.services.devices.get_item(Key={"fleet": FLEET, "thing": "a"})["Item"]
    assert Device.from_item(item).drift == measured(0.5, scores=1e-9)
