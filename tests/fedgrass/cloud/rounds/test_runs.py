"""Runs of more rounds than an execution holds: the next execution goes on as if it were the same."""

from __future__ import annotations

import io
import json
import math
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from rich.console import Console
from typer.testing import CliRunner

from fedgrass.account import Account
from fedgrass.cli.rounds import app, watch
from fedgrass.cloud.rounds.abort_round import ExecutionEnd, execution_ended
from fedgrass.cloud.rounds.close_round import CloseRequest, _why_over, close_round
from fedgrass.cloud.rounds.open_round import OpenRequest, open_round
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.protocol import tables
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.runs import run_after
from fedgrass.protocol.tables import load_state
from fedgrass.protocol.writes import BusyError
from fedgrass.rounds_api import cancel_round, resume_run, run_so_far
from tests.fedgrass.cloud.rounds.harness import EXECUTION, FLEET, Fleet
from tests.fixtures.doubles import double

OTHER = EXECUTION.replace("one", "other")


def limited(fleet: Fleet, rounds: int) -> Fleet:
    """Let an execution hold so many rounds."""
    fleet.services.__dict__["rounds_of_an_execution"] = rounds
    return fleet


def run(
    fleet: Fleet, accuracies: list[float | None], execution: str = EXECUTION, **given: Any
) -> tuple[list[str], str]:
    """Run rounds as the state machine does, through as many executions as that takes.

    Returns the executions and why the run is over. Without an accuracy the gate holds the round's model.
    """
    executions, ended = [execution], ""
    results: list[dict[str, Any]] = []
    for accuracy in accuracies:
        fleet.heartbeats("a", "b", "c")
        opened = open_round(fleet.services, OpenRequest(execution=executions[-1], overrides=given, results=results))
        number = opened["round"]
        for thing in "abc":
            record_update(fleet.services, fleet.update(thing, number))
        start_aggregation(fleet.services, TokenRequest(round=number, token=f"job {number}"))
        figures = Evaluation(loss=1.0, accuracy=accuracy or 0.99, examples=9)
        fleet.write_report("held" if accuracy is None else "released", number, evaluation=figures)
        record_report(fleet.services, RoundRequest(round=number))
        fleet.pass_time(1800)
        close = CloseRequest(round=number, rounds=opened["rounds"], overrides=given, results=results)
        closed = close_round(fleet.services, close)
        assert close_round(fleet.services, close) == closed, "asked once more, because its answer was lost"
        results, ended = closed["results"], closed["ended"]
        if closed["next"]:
            fleet.step_functions.statuses[executions[-1]] = "SUCCEEDED"
            executions.append(closed["next"])
            given = fleet.step_functions.started[closed["next"].rsplit(":", 1)[-1]]
            results = []
        elif not closed["more"]:
            fleet.step_functions.statuses[executions[-1]] = "SUCCEEDED"
            break
    return executions, ended


class Executions:
    """Step Functions as `Account` has it: the harness's, and what a person asks of it."""

    def __init__(self, fleet: Fleet, given: dict[str, Any]) -> None:
        self.fleet, self.given = fleet, given
        self.begun: list[dict[str, Any]] = []
        self.exceptions = type("Exceptions", (), {"ExecutionDoesNotExist": ClientError})

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        given = self.fleet.step_functions.started.get(executionArn.rsplit(":", 1)[-1], self.given)
        return {**self.fleet.step_functions.describe_execution(executionArn=executionArn), "input": json.dumps(given)}

    def start_execution(self, *, stateMachineArn: str, input: str) -> dict[str, str]:  # noqa: A002, N803
        arn = f"{EXECUTION}-resumed-{len(self.begun)}"
        self.fleet.step_functions.start_execution(
            stateMachineArn=stateMachineArn, name=arn.rsplit(":", 1)[-1], input=input
        )
        self.begun.append(self.fleet.step_functions.started[arn.rsplit(":", 1)[-1]])
        return {"executionArn": arn}

    def stop_execution(self, *, executionArn: str, error: str, cause: str) -> None:  # noqa: N803
        if self.fleet.step_functions.statuses[executionArn] == "RUNNING":
            self.fleet.step_functions.statuses[executionArn] = "ABORTED"
            execution_ended(self.fleet.services, ExecutionEnd(executionArn=executionArn, status="ABORTED", cause=cause))


def account_of(fleet: Fleet, **given: Any) -> tuple[Account, Executions]:
    account = Account(FLEET, double(object()))
    machine = EXECUTION.replace(":execution:", ":stateMachine:").removesuffix(":one")
    executions = Executions(fleet, given)
    stack = type("Stack", (), {"state_machine_arn": machine})
    account.__dict__.update(stack=stack, rounds_table=fleet.rounds, step_functions=executions)
    return account, executions


def test_a_run_goes_on_through_executions_with_its_count_and_its_schedule(fleet: Fleet) -> None:
    halves = {"kind": "step", "rounds": 1, "factor": 0.5}
    given: dict[str, Any] = {"rounds": 3, "fit": {"learning_rate": 0.8}, "schedule": {"learning_rate": halves}}
    executions, ended = run(limited(fleet, 1), [0.5, None, 0.7, 0.8], Comment="mine", **given)
    records = [fleet.round(number) for number in range(1, 4)]
    assert (len(executions), ended, load_state(fleet.rounds, FLEET).last) == (3, "", 3)
    assert [record.execution for record in records] == executions
    assert [record.settings.fit.learning_rate for record in records] == [0.8, 0.4, 0.2]
    assert [record.of_run for record in records] == [f"{n} of 3 since round 1" for n in range(1, 4)]
    assert load_state(fleet.rounds, FLEET).reserved is None
    assert len(fleet.step_functions.started) == 2, "each is started once"


def test_between_two_executions_nobody_else_opens_a_round_and_who_stops_either_stops_the_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    account, executions = account_of(fleet, rounds=3)
    [_, following], _ = run(limited(fleet, 1), [0.5], rounds=3)
    fleet.heartbeats("a", "b", "c")
    fleet.step_functions.statuses[OTHER] = "RUNNING"
    with pytest.raises(RoundRefusedError, match="has more rounds to run"):
        fleet.open(OTHER)
    assert load_state(fleet.rounds, FLEET).reserved == following
    request = OpenRequest(execution=following, overrides=fleet.step_functions.started[following.rsplit(":", 1)[-1]])
    for status in ("ABORTED", "FAILED", "TIMED_OUT", "RUNNING"):
        fleet.step_functions.statuses[EXECUTION] = status
        with pytest.raises(BusyError if status == "RUNNING" else RoundRefusedError, match="execution before this one"):
            open_round(fleet.services, request)
        # Who stopped the one before stopped the run: no failure, of which an alarm would tell.
        assert fleet.step_functions.statuses[following] == ("ABORTED" if status == "ABORTED" else "RUNNING")
        fleet.step_functions.statuses[following] = "RUNNING"
    fleet.step_functions.statuses[EXECUTION] = "SUCCEEDED"
    # Read a moment too early: the execution that holds the fleet has ended since, and its run gone on.
    states = [load_state(fleet.rounds, FLEET).model_copy(update={"reserved": EXECUTION})]
    with monkeypatch.context() as patch:
        patch.setattr(tables, "load_state", lambda *of: states.pop() if states else load_state(*of))
        assert cancel_round(account, "enough") == 1
    assert fleet.step_functions.statuses[following] == "ABORTED"
    assert load_state(fleet.rounds, FLEET).reserved is None
    with pytest.raises(RoundRefusedError, match="no open round"):
        cancel_round(account, "enough")
    with pytest.raises(RoundRefusedError, match="opens no round any more"):
        open_round(fleet.services, request)
    # Nothing of the second execution was opened: its first round is still to come.
    monkeypatch.setattr(Account, "of", lambda *_: account)
    monkeypatch.setattr("fedgrass.cli.rounds.require_begun", lambda *_: True)
    told = CliRunner().invoke(app, ["resume", "--fleet", FLEET, "--rounds", "4", "--set", "until.patience=9"])
    assert "Started: round 2 of fleet digits, of a run of at most 4 rounds" in told.stdout.replace("\n", " "), told
    [begun] = executions.begun
    assert (begun["rounds"], begun["until"], begun["run"]["standing"]["done"]) == (4, {"patience": 9}, 1)


def test_a_run_that_is_none_is_refused_by_name_and_a_fleet_without_a_round_has_none(fleet: Fleet) -> None:
    with pytest.raises(ConfigurationError, match=r"run\.started_at"):
        fleet.open(run={"first": 1})
    assert fleet.open_round is None
    with pytest.raises(RoundRefusedError, match="has had no round yet"):
        resume_run(account_of(fleet)[0], {})


def test_an_interrupted_run_goes_on_from_its_last_whole_round(fleet: Fleet) -> None:
    halves = {"kind": "step", "rounds": 1, "factor": 0.5}
    given: dict[str, Any] = {
        "rounds": 6,
        "fit": {"learning_rate": 0.8},
        "schedule": {"learning_rate": halves},
        "until": {"patience": 3},
    }
    account, executions = account_of(fleet, Comment="mine", **given)
    run(limited(fleet, 2), [0.5, 0.6, 0.55], **given)  # the third is the first of the second execution
    with pytest.raises(RoundRefusedError, match="has more rounds to run"):
        resume_run(account, {})
    fleet.heartbeats("a", "b", "c")
    fleet.open(fleet.round(3).execution, **fleet.step_functions.started[fleet.round(3).execution.rsplit(":", 1)[-1]])
    assert cancel_round(account, "the power goes") == 4
    assert fleet.round(4).outcome == "cancelled"
    # A round of somebody else's in between is none of the run.
    fleet.step_functions.statuses[OTHER] = "RUNNING"
    run(fleet, [0.9], OTHER)
    started = resume_run(account, {"until": {"patience": 2}}, 2)
    assert started.round == 6
    assert executions.begun[0]["until"] == {"patience": 2}
    _, ended = run(fleet, [0.59, 0.9], started.execution, **executions.begun[0])
    assert ended == "no better accuracy than 0.6 in the last 2 rounds (until.patience)"
    assert (load_state(fleet.rounds, FLEET).last, fleet.round(6).settings.fit.learning_rate) == (6, 0.1)
    assert fleet.round(6).of_run == "4 of at most 6 since round 1"
    with pytest.raises(RoundRefusedError, match="is over: no better accuracy"):
        resume_run(account, {})
    with pytest.raises(RoundRefusedError, match="has had its 4 rounds"):
        resume_run(account, {"rounds": 4})


def test_watching_a_run_ends_with_its_last_execution(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    account, _ = account_of(fleet)
    outputs = {"one": '{"next": "two"}', "two": '{"next": "", "ended": "enough"}'}
    described: list[str] = []

    def describe(*, executionArn: str) -> dict[str, str]:  # noqa: N803 - boto3's name
        described.append(executionArn)
        return {"status": "SUCCEEDED", "output": outputs[executionArn]}

    monkeypatch.setattr(account.step_functions, "describe_execution", describe)
    console = Console(file=io.StringIO())
    watch(account, "one", console)
    assert set(described) == {"one", "two"}
    assert "No more rounds: enough." in console.file.getvalue()  # type: ignore[attr-defined]


NOISE = 2.0


def epsilon_of(rounds: int) -> float:
    """Return ε at δ = 1e-5 of so many rounds with that noise, by a library of its own."""
    dp_accounting = pytest.importorskip("dp_accounting")
    return float(dp_accounting.get_epsilon_gaussian(NOISE / math.sqrt(rounds), 1e-5))


def test_a_run_ends_well_with_the_last_round_that_its_budget_of_privacy_holds(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    between = (epsilon_of(2) + epsilon_of(3)) / 2
    given: dict[str, Any] = {
        "rounds": 5,
        "privacy": {"mode": "central", "noise_multiplier": NOISE, "epsilon_budget": between},
    }
    account, executions = account_of(fleet, **given)
    with caplog.at_level("INFO"):
        _, ended = run(limited(fleet, 3), [0.5, 0.6, 0.7], Comment="mine", **given)
    assert (
        ended
        == f"with one more round ε would be {epsilon_of(3):.4g} at δ = 1e-05, of {between:g} (privacy.epsilon_budget)"
    )
    state = load_state(fleet.rounds, FLEET)
    assert (state.last, state.open, state.reserved) == (2, None, None)
    assert (fleet.round(1).ended, fleet.round(2).ended) == ("", ended)
    assert "run_ended" in caplog.text
    with pytest.raises(RoundRefusedError, match=r"is over: with one more round.*--set privacy\.epsilon_budget="):
        resume_run(account, {})
    larger = {"privacy": {"epsilon_budget": (epsilon_of(3) + epsilon_of(4)) / 2}}
    started = resume_run(account, larger)
    # The fourth is for the whole of a budget; asked between two executions.
    _, ended = run(limited(fleet, 1), [0.7, 0.8], started.execution, **executions.begun[0])
    assert (load_state(fleet.rounds, FLEET).last, f"ε would be {epsilon_of(4):.4g}" in ended) == (3, True)


def test_a_budget_is_that_of_the_next_round_s_settings(fleet: Fleet) -> None:
    privacy = {"mode": "central", "noise_multiplier": NOISE, "epsilon_budget": (epsilon_of(1) + epsilon_of(2)) / 2}
    fleet.heartbeats("a", "b", "c")
    opened = open_round(fleet.services, OpenRequest(execution=EXECUTION, overrides={"rounds": 3, "privacy": privacy}))
    close = CloseRequest(round=1, rounds=opened["rounds"], overrides={"rounds": 3, "privacy": privacy})
    larger = {"epsilon_budget": 99}
    # What no round could have ends no run: its opening says what is wrong.
    for changes, over in (({**privacy, **larger}, False), ({"mode": "never"}, False), (privacy, True)):
        request = close.model_copy(update={"overrides": {"rounds": 3, "privacy": changes}})
        assert bool(_why_over(fleet.services, fleet.round(1), run_after(fleet.round(1)), request.overrides)) == over
    # Asked again after the budget was raised, it says what it did: by then somebody else may have the fleet.
    first = close_round(fleet.services, close)
    assert first["ended"]
    raised = close.model_copy(update={"overrides": {"rounds": 3, "privacy": {**privacy, **larger}}})
    assert close_round(fleet.services, raised) == first


def test_a_run_ends_before_the_round_that_would_pass_its_dollars_whatever_its_executions(fleet: Fleet) -> None:
    each = 25 * 0.025 / 1000  # transitions; and three devices, each with an update of 1,000 bytes and a roll-out
    for _ in "abc":
        each += 0.005 / 1000 + 0.0004 / 1000 + 1000 / 1e9 * 0.023 + 0.003
        each += 2 * (1.3 / 1e6 + 0.2 / 1e6 + 0.05 * 0.0000133334 + 4 * 0.625 / 1e6 + 6 * 0.125 / 1e6)
    given: dict[str, Any] = {"rounds": 9, "until": {"dollars": 2.5 * each}}
    account, _ = account_of(fleet, **given)
    executions, ended = run(limited(fleet, 1), [0.5, 0.6, 0.7], **given)
    first, second = fleet.round(1), fleet.round(2)
    assert (load_state(fleet.rounds, FLEET).last, len(executions)) == (2, 2)
    assert first.dollars == pytest.approx(each)
    assert second.run is not None
    assert second.run.standing.cost.dollars == pytest.approx(each)
    assert "by list prices, and one more round of " in ended
    assert [(job.machine, job.machines) for job in first.jobs] == [("ml.m5.large", 1)]
    assert (
        second.costs
        == f"about {each:.3g} dollars by list prices, {2 * each:.3g} with the rounds of its run before; not AWS's bill"
    )
    with pytest.raises(RoundRefusedError, match=r"is over: some .* \(until\.dollars\); change that with --set"):
        resume_run(account, {})
    started = resume_run(account, {"until": {"dollars": 3.5 * each}})
    _, ended = run(
        limited(fleet, 9),
        [0.8, 0.9],
        started.execution,
        **fleet.step_functions.started[started.execution.rsplit(":", 1)[-1]],
    )
    assert (load_state(fleet.rounds, FLEET).last, bool(ended)) == (3, True)
    fleet.heartbeats("a", "b", "c")
    # A round that is cancelled counts as none, but what it cost is spent.
    fleet.step_functions.statuses[OTHER] = "RUNNING"
    fleet.heartbeats("a", "b", "c")
    record = fleet.open(OTHER, rounds=2, until={"dollars": 9})
    for thing in "ab":
        record_update(fleet.services, fleet.update(thing, record.round))
    cancel_round(account, "enough")
    cancelled = fleet.round(record.round)
    assert cancelled.dollars
    assert (run_so_far(cancelled).standing.done, run_so_far(cancelled).standing.cost.dollars) == (0, cancelled.dollars)
    with pytest.raises(RoundRefusedError, match="a round of 3 devices costs more than"):
        fleet.open(EXECUTION + "-new", until={"dollars": 0.001})
    assert fleet.open_round is None
