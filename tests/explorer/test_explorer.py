"""The short form of the explorer, and what is known to have gone wrong before, as schedules."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedgrass.cloud.ending.outcome import decide
from tests.explorer.dynamo import refusal
from tests.explorer.explore import SCENARIOS, SINGLE, campaign, length, mixed, run
from tests.explorer.machine import Machine
from tests.explorer.scenario import CANARIES_ARN, GROUP_ARN, Scenario, Schedule
from tests.explorer.world import World

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_is_broken_when_nothing_is_disturbed(scenario: Scenario) -> None:
    assert length(scenario) > 50


@pytest.mark.parametrize("part", range(4))
def test_whatever_happens_the_fleet_agrees_with_its_record(part: int) -> None:
    broken: dict[str, dict[str, str]] = {}
    for number, schedule in enumerate(campaign(160, seed=part)):
        if number % 4 == part:
            _, found = run(schedule)
            if found:
                broken[str(schedule)] = found
    assert not broken


def steps_of(scenario: Scenario, *words: str) -> list[int]:
    """Steps of the undisturbed scenario at which calls are made whose names have these words."""
    world, _ = run(Schedule(scenario, {}))
    found = [line for line in world.scheduler.trace[: world.steps] if all(word in line for word in words)]
    return [int(line.split()[0]) for line in found]


@pytest.mark.parametrize("obeys", [True, False], ids=["at SIGTERM", "at SIGKILL"])
def test_a_round_cancelled_at_any_call_of_its_job_is_released_or_has_changed_nothing(obeys: bool) -> None:
    scenario = _BY_NAME["canaries"]
    ends = set()
    for step in steps_of(scenario, "job:")[::6]:
        world, found = run(Schedule(scenario, {step: [("stop",), ("delay",)]}, obeys=obeys))
        assert not found, (step, found)
        ends.add(world.records()[0].outcome)
    assert ends == {"cancelled", "released"}


def test_a_job_killed_between_the_decision_and_the_deployment_is_rolled_forward_by_whoever_comes() -> None:
    scenario = _BY_NAME["release"]
    [decided] = steps_of(scenario, "job:", "transact_write_items")
    world, found = run(Schedule(scenario, {decided + 1: [("kill",)]}))
    assert not found
    assert world.records()[0].outcome == "released"
    assert "1.1.0" in world.ever_deployed()


def test_a_job_killed_before_the_decision_changes_nothing_for_good() -> None:
    scenario = _BY_NAME["canaries"]
    [decided] = steps_of(scenario, "job:", "transact_write_items")
    world, found = run(Schedule(scenario, {decided: [("kill",)]}))
    assert not found
    assert world.records()[0].outcome == "failed"
    assert "1.1.0" not in world.ever_deployed()
    assert world.version_on(CANARIES_ARN, GROUP_ARN) == "1.2.0"


def test_a_refused_model_is_taken_back_whichever_call_a_function_ends_at() -> None:
    scenario = _BY_NAME["devices refuse"]
    steps = steps_of(scenario, "record_model")
    for step in steps[::3]:
        world, found = run(Schedule(scenario, {step: [("crash",)]}))
        assert not found, (step, found)
        assert world.records()[0].outcome == "refused"
        assert world.version_on(GROUP_ARN) == "1.2.0"


def test_a_stream_waits_for_nobody_and_counts_a_slow_devices_update_in_the_round_that_is_open() -> None:
    world, found = run(Schedule(_BY_NAME["stream"], {}))
    assert not found
    first, *others = world.records()
    assert (first.collected_at or first.deadline) >= first.deadline  # one of two updates: until the deadline
    for record in others:
        assert (record.collected_at or record.deadline) - record.opened_at < (record.deadline - record.opened_at) / 10
        assert (record.took, record.participants) == ({record.round - 1: 1, record.round: 1}, 2)


def between_executions(scenario: Scenario) -> range:
    """Steps from the close of an execution's last round to the opening of the next one's first."""
    [started] = steps_of(scenario, "stepfunctions.start_execution")
    [*_, opened] = steps_of(scenario, "open_round", "transact_write_items")
    return range(started - 8, opened + 3)


STOPS = ((("operate", "cancel"), ("delay",)), (("stop",), ("delay",)), (("stop first",), ("delay",)), (("crash",),))


@pytest.mark.parametrize("number", range(len(STOPS)), ids=lambda number: STOPS[number][0][-1])
def test_a_run_stopped_at_any_call_between_its_executions_stops_and_goes_on_when_resumed(number: int) -> None:
    scenario, statuses = _BY_NAME["run of two executions"], set()
    lost = dict.fromkeys(range(20, 60), 0)  # the word of an execution's end among them
    for step in between_executions(scenario)[number::7]:
        for events in ({}, lost):
            world, found = run(Schedule(scenario, {step: list(STOPS[number])}, events=events))
            assert not found, (step, bool(events), found)
            assert len(world.records()) >= 4
            statuses.add(tuple(one.status for one in world.run_of_main()))
    assert statuses, "nothing was tried"


@pytest.mark.parametrize(("times", "statuses"), [(2, ["SUCCEEDED", "SUCCEEDED"]), (9, ["FAILED"])])
def test_a_next_execution_that_cannot_be_started_is_tried_again_and_ends_the_run_if_it_never_can(
    monkeypatch: pytest.MonkeyPatch, times: int, statuses: list[str]
) -> None:
    original, left = Machine.start_execution, [times]

    def refuses(machine: Machine, **given: Any) -> dict[str, str]:
        if "name" in given and left[0]:
            left[0] -= 1
            raise refusal("ThrottlingException")
        return original(machine, **given)

    monkeypatch.setattr(Machine, "start_execution", refuses)
    world, found = run(Schedule(_BY_NAME["run of two executions"], {}))
    found.pop("execution failed of contention", None)  # as it must, in the second case
    assert not found
    assert [one.status for one in world.run_of_main()] == statuses


def test_no_round_waits_for_an_event_that_was_lost() -> None:
    scenario = _BY_NAME["canaries"]
    lost = dict.fromkeys(range(3, 30), 0)  # all but the two notices of updates
    left = 0
    for step in steps_of(scenario, "job:")[::20]:
        schedule = Schedule(scenario, {step: [("stop",)]}, events=lost, obeys=False)
        _, found = run(schedule)
        assert not found, (step, found)
        World.swept = False
        try:
            left += "round stays open" in run(schedule)[1]
        finally:
            World.swept = True
    assert left, "nothing was lost that mattered"


def test_the_explorer_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that deploys before its outcome is written, as it once did."""
    original = decide

    def hasty(rounds: Any, record: Any, report: Any) -> Any:
        world = World.current
        assert world is not None
        if report.outcome == "released":
            greengrass = world.session().client("greengrassv2")
            components = world.greengrass.deployments[0]["components"]
            greengrass.create_deployment(
                targetArn=GROUP_ARN,
                components={**components, "com.fedgrass.GlobalModel": {"componentVersion": record.version}},
            )
        return original(rounds, record, report)

    scenario = _BY_NAME["release"]
    [decided] = steps_of(scenario, "job:", "transact_write_items")
    monkeypatch.setattr("fedgrass.cloud.aggregator.conclusion.decide", hasty)
    _, found = run(Schedule(scenario, {decided + 1: [("stop",), ("delay",)]}))
    assert "unreleased model on the fleet" in found


def test_a_schedule_runs_the_same_way_again() -> None:
    scenario = _BY_NAME["several rounds"]
    schedule = mixed(scenario, 200, seed=7)
    first, second = run(schedule)[0], run(schedule)[0]
    without_salts = [[re.sub("[0-9a-f]{32}", "salt", line) for line in one.scheduler.trace] for one in (first, second)]
    assert without_salts[0] == without_salts[1]
    assert len(SINGLE) == len({action[0] for action in SINGLE})
