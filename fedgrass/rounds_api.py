"""What an operator does with rounds, for the command line and the web console alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedgrass.account import Account
from fedgrass.errors import RoundRefusedError
from fedgrass.protocol import tables
from fedgrass.protocol.collecting import round_to_aggregate
from fedgrass.protocol.records import FleetState, OpenRound, RoundRecord
from fedgrass.protocol.settings import FleetSettings

_MAX_CAUSE = 256
_ANSWERED = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}


@dataclass(frozen=True)
class Started:
    """A started execution: the number that its first round is going to have, and its settings."""

    execution: str
    round: int
    settings: FleetSettings


def start_rounds(account: Account, overrides: dict[str, Any]) -> Started:
    """Start rounds with the fleet's settings and these overrides, as the button in Step Functions does.

    Raises
    ------
    ConfigurationError
        If an override names no setting, or is out of range: refused here already, where the message can name it.
    RoundRefusedError
        If a round is open.
    """
    settings = tables.load_settings(account.rounds_table, account.fleet).overridden(overrides)
    # Refused here, where a person reads it, and not by an execution that fails a moment later.
    state = require_no_open_round(account)
    started = account.step_functions.start_execution(
        stateMachineArn=account.stack.state_machine_arn, input=json.dumps(overrides)
    )
    return Started(started["executionArn"], state.last + 1, settings)


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
    client = account.step_functions
    try:
        return bool(client.describe_execution(executionArn=execution)["status"] == "RUNNING")
    except client.exceptions.ExecutionDoesNotExist:
        return False


def cancel_round(account: Account, reason: str) -> OpenRound:
    """End the open round, whose record keeps the reason; the model stays as it is.

    Raises
    ------
    RoundRefusedError
        If no round is open, or its execution has ended by itself.
    """
    state = tables.load_state(account.rounds_table, account.fleet)
    if state.open is None:
        raise RoundRefusedError(f"fleet {account.fleet!r} has no open round to cancel")
    if not is_running(account, state.open.execution):
        raise RoundRefusedError(
            f"round {state.open.round} of fleet {account.fleet!r} is left over from an execution that has ended; "
            "the next `fedgrass round start` takes its place"
        )
    account.step_functions.stop_execution(
        executionArn=state.open.execution, error="Cancelled", cause=reason[:_MAX_CAUSE]
    )
    return state.open


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
