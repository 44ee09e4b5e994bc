"""What an operator does with rounds, for the command line and the web console alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fedgrass.account import Account
from fedgrass.errors import RoundRefusedError
from fedgrass.protocol import tables
from fedgrass.protocol.budget import beyond_budget_next
from fedgrass.protocol.collecting import round_to_aggregate
from fedgrass.protocol.fleet_state import FleetState
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import first_round, run_rounds
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.runs import run_after, run_without, why_over
from fedgrass.protocol.settings import FleetSettings, laid_over

_MAX_CAUSE = 256
_TRIES = 5
_ANSWERED = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}


@dataclass(frozen=True)
class Started:
    """A started execution: the number that its first round is going to have, and its settings."""

    execution: str
    round: int
    settings: FleetSettings


def start_rounds(account: Account, overrides: dict[str, Any], name: str | None = None) -> Started:
    """Start rounds with the fleet's settings and these overrides, as the button in Step Functions does.

    Parameters
    ----------
    account
        The fleet's account.
    overrides
        What is to be different from the fleet's settings.
    name
        The execution's: started twice under one name, it is one. None: Step Functions makes one up.

    Raises
    ------
    ConfigurationError
        If an override names no setting, or is out of range: refused here already, where the message can name it.
    RoundRefusedError
        If a round is open.
    """
    settings = tables.load_settings(account.rounds_table, account.fleet).overridden(overrides)
    # Refused here, where a person reads it, and not by an execution that fails a moment later.
    return _start(account, overrides, require_no_open_round(account), settings, name)


def _start(
    account: Account, request: dict[str, Any], state: FleetState, settings: FleetSettings, name: str | None
) -> Started:
    named: dict[str, Any] = {} if name is None else {"name": name}
    started = account.step_functions.start_execution(
        stateMachineArn=account.stack.state_machine_arn, input=json.dumps(request), **named
    )
    return Started(started["executionArn"], state.last + 1, settings)


def execution_named(account: Account, name: str) -> str:
    """Return the ARN that an execution of the fleet's state machine has by its name, whether there is one or not."""
    # Built from the stack's own, so that no name leads to another account's execution.
    return account.stack.state_machine_arn.replace(":stateMachine:", ":execution:", 1) + f":{name}"


def needs_bounds(account: Account, overrides: dict[str, Any]) -> bool:
    """Whether a round of statistics would have no bounds for its histograms: no earlier profile of this model, none given."""
    settings = tables.load_settings(account.rounds_table, account.fleet).overridden(overrides)
    if settings.task != "statistics" or settings.statistics.low is not None:
        return False
    state = tables.load_state(account.rounds_table, account.fleet)
    known = state.profile
    return known is None or state.model is None or known.graph_sha256 != state.model.graph_sha256


def require_no_open_round(account: Account) -> FleetState:
    """Return the fleet's state; raises `RoundRefusedError` if a round is open, unless its execution has ended."""
    state = tables.load_state(account.rounds_table, account.fleet)
    if state.open is not None and is_running(account, state.open.execution):
        raise RoundRefusedError(
            f"round {state.open.round} of fleet {account.fleet!r} is open since {state.open.opened_at:%Y-%m-%d %H:%M:%S}; "
            "wait for it, or end it with `fedgrass round cancel`"
        )
    return state


def is_running(account: Account, execution: str) -> bool:
    """Whether the execution runs; one that Step Functions has forgotten does not."""
    return status_of(account, execution) == "RUNNING"


def status_of(account: Account, execution: str) -> str:
    """Return an execution's status; empty if Step Functions knows none of that name."""
    client = account.step_functions
    try:
        return str(client.describe_execution(executionArn=execution)["status"])
    except client.exceptions.ExecutionDoesNotExist:
        return ""


def cancel_round(account: Account, reason: str, run: int | None = None) -> int:
    """End the open round, whose record keeps the reason, and its run; the model stays as it is. Returns the round's number.

    Between two rounds it is the run that ends: the number is that of the round before.

    Parameters
    ----------
    account
        The fleet's account.
    reason
        Why.
    run
        Number of the first round of the run that is meant; None for whichever goes on.

    Raises
    ------
    RoundRefusedError
        If no round is open and no run goes on, if it is another run, or if the round's execution has ended by itself.
    """
    for _ in range(_TRIES):
        state = tables.load_state(account.rounds_table, account.fleet)
        holder = state.open.execution if state.open is not None else state.reserved
        if holder is None:
            break
        _require_run(account, state, run)
        if not is_running(account, holder):
            # A run may have gone on in its next execution since the state was read.
            if tables.load_state(account.rounds_table, account.fleet) != state:
                continue
            raise RoundRefusedError(
                f"round {state.last} of fleet {account.fleet!r} is left over from an execution that has ended; "
                "the next `fedgrass round start` takes its place"
            )
        account.step_functions.stop_execution(executionArn=holder, error="Cancelled", cause=reason[:_MAX_CAUSE])
        # It may have ended by itself just before, and its run have gone on in the next one.
        if status_of(account, holder) != "SUCCEEDED":
            return state.last
    raise RoundRefusedError(f"fleet {account.fleet!r} has no open round to cancel")


def _require_run(account: Account, state: FleetState, run: int | None) -> None:
    """Raise `RoundRefusedError` if the fleet is not held for this run: who looked at an old page means another round."""
    if run is None:
        return
    found = first_round(tables.load_round(account.rounds_table, account.fleet, state.last))
    if found != run:
        raise RoundRefusedError(
            f"the run since round {run} of fleet {account.fleet!r} has ended; the one that goes on began with round {found}"
        )


def resume_run(
    account: Account, overrides: dict[str, Any], number: int | None = None, name: str | None = None
) -> Started:
    """Go on with a run that was cancelled or has failed, from its last whole round: it counts on, and so does its patience.

    Parameters
    ----------
    account
        The fleet's account.
    overrides
        What is to be different from its start.
    number
        A round of the run; None for the fleet's last.
    name
        The execution's, as of `start_rounds`.

    Raises
    ------
    ConfigurationError
        If an override names no setting, or is out of range.
    RoundRefusedError
        If a round is open or a run goes on, if there is nothing left to run, or if its start is forgotten.
    """
    state = require_no_open_round(account)
    record = _last_of_run(account, state, number)
    _require_not_going_on(account, state, record.execution)
    run = run_so_far(record)
    given = laid_over(_input_of(account, record), overrides)
    settings = _settings_with(account, given)
    if run.standing.done >= settings.rounds:
        raise RoundRefusedError(
            f"the run since round {run.first} of fleet {account.fleet!r} has had its {settings.rounds} rounds; give it more with "
            "--rounds, or begin another with `fedgrass round start`"
        )
    if ended := why_over(settings, run, datetime.now(timezone.utc)):
        raise RoundRefusedError(
            f"the run since round {run.first} of fleet {account.fleet!r} is over: {ended}; change that with --set, or begin "
            "another with `fedgrass round start`"
        )
    last = tables.load_round(account.rounds_table, account.fleet, state.last)
    if beyond := beyond_budget_next(settings, state, last):
        raise RoundRefusedError(
            f"the run since round {run.first} of fleet {account.fleet!r} is over: {beyond}; keep the model as it is, or decide "
            "on a larger budget with --set privacy.epsilon_budget=..."
        )
    run = run.model_copy(update={"previous": None})
    request = {**given, "run": run.model_dump(mode="json", exclude_none=True)}
    return _start(account, request, state, settings, name)


def run_so_far(record: RoundRecord) -> Run:
    """Return what a run has come to, given its newest round; one that is open, was cancelled or has failed does not count."""
    whole = record.outcome not in {None, "cancelled", "failed"}
    return run_after(record) if whole else run_without(record)


def resumed_settings(account: Account, record: RoundRecord) -> FleetSettings:
    """Return the settings that a run goes on with if nothing is changed, given any round of its last execution.

    Raises
    ------
    ConfigurationError
        If what it was started with is no longer valid.
    RoundRefusedError
        If its start is forgotten.
    """
    return _settings_with(account, _input_of(account, record))


def _settings_with(account: Account, given: dict[str, Any]) -> FleetSettings:
    return tables.load_settings(account.rounds_table, account.fleet).overridden(given)


def _last_of_run(account: Account, state: FleetState, number: int | None) -> RoundRecord:
    if not state.last:
        raise RoundRefusedError(f"fleet {account.fleet!r} has had no round yet: `fedgrass round start`")
    wanted = tables.load_round(account.rounds_table, account.fleet, number or state.last)
    if wanted.round == state.last:
        return wanted
    rounds = run_rounds(account.rounds_table, account.fleet, wanted)
    [last] = rounds.at([rounds.count - 1])
    return wanted if last == wanted.round else tables.load_round(account.rounds_table, account.fleet, last)


def _require_not_going_on(account: Account, state: FleetState, execution: str) -> None:
    for one in {execution, state.reserved or execution}:
        if is_running(account, one):
            raise RoundRefusedError(
                f"fleet {account.fleet!r}: execution {one} has more rounds to run; wait for it, or `fedgrass round cancel`"
            )


def _input_of(account: Account, record: RoundRecord) -> dict[str, Any]:
    client = account.step_functions
    try:
        described = client.describe_execution(executionArn=record.execution)
    except client.exceptions.ExecutionDoesNotExist as error:
        raise RoundRefusedError(
            f"round {record.round} of fleet {account.fleet!r}: Step Functions has forgotten its execution, as it does after 90 "
            "days, and with it what the run was started with; begin another with `fedgrass round start`"
        ) from error
    given = json.loads(described.get("input") or "{}")
    return {name: value for name, value in given.items() if name != "run" and name.lower() != "comment"}


def aggregate_now(account: Account) -> RoundRecord:
    """End the open round's collecting with what there is; safe to repeat. Returns the round as it was then.

    The state machine goes on as if the quorum had come: by the token that it waits with.

    Raises
    ------
    RoundRefusedError
        If no round is open or it does not collect, or if it has fewer updates than it needs to change anything.
    """
    from botocore.exceptions import ClientError  # late, as everywhere: `fedgrass --help` needs none of it

    record = round_to_aggregate(account.rounds_table, account.fleet)
    output = json.dumps({"uploaded": record.uploaded})
    try:
        account.step_functions.send_task_success(taskToken=str(record.collect_token), output=output)
    except ClientError as error:
        # Quorum, deadline or somebody else was faster: the collecting is ended, as was asked for.
        if error.response["Error"]["Code"] not in _ANSWERED:
            raise
    return record
