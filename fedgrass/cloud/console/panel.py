"""What is going on: the open round, a start that is under way, or why the last start came to nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask import request, url_for

from fedgrass.cloud.console.context import Context
from fedgrass.protocol import tables
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.fleet_state import FleetState
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_pieces import first_round
from fedgrass.rounds_api import execution_named, is_running

# Step Functions' rule for names; it goes into an ARN below.
_EXECUTION = re.compile(r"^[A-Za-z0-9_-]{1,80}$")
PHASES = ("collecting", "aggregating", "rolling_out", "closed")


@dataclass(frozen=True)
class Panel:
    """What is going on: the open round, or the start that is under way, or why the last start came to nothing.

    ``left_over`` says that the round's execution has ended without closing it. ``execution`` is the name of the execution
    that is followed. ``at_hand`` counts the updates that end the collecting: in a stream, those of earlier rounds too.
    ``before`` is the round before, while a run is between two of them.
    """

    record: RoundRecord | None = None
    left_over: bool = False
    execution: str = ""
    starting: bool = False
    failure: str = ""
    phases: tuple[str, ...] = PHASES
    at_hand: int = 0
    before: RoundRecord | None = None

    @property
    def address(self) -> str:
        """Where the panel's next state is asked for."""
        return url_for(
            "rounds.live",
            round=self.record.round if self.record else None,
            execution=self.execution or None,
            before=self.before.round if self.before else None,
        )

    @property
    def run(self) -> int | None:
        """Number of the first round of the run that goes on, to which the open round belongs; None if none does."""
        going_on = self.record or self.before
        return None if going_on is None else first_round(going_on)


def live_panel(context: Context, state: FleetState) -> Panel:
    """Return what is going on, following the execution that the request names, if any."""
    account = context.account
    execution = request.args.get("execution", "")
    if not _EXECUTION.match(execution):
        execution = ""
    if state.open is not None:
        record = tables.load_round(account.rounds_table, account.fleet, state.open.round)
        streams = record.settings.is_asynchronous and record.phase == "collecting"
        at_hand = updates_at_hand(account.rounds_table, record) if streams else record.uploaded
        return Panel(record, not is_running(account, state.open.execution), execution, at_hand=at_hand)
    if state.reserved is not None and is_running(account, state.reserved):
        return Panel(before=tables.load_round(account.rounds_table, account.fleet, state.last), execution=execution)
    if not execution:
        return Panel()
    arn = execution_named(account, execution)
    client = account.step_functions
    try:
        described = client.describe_execution(executionArn=arn)
    except (client.exceptions.ExecutionDoesNotExist, client.exceptions.InvalidArn):
        return Panel()
    if described["status"] == "RUNNING":
        return Panel(execution=execution, starting=True)
    if described["status"] in {"SUCCEEDED", "ABORTED"}:
        return Panel()
    return Panel(failure=str(described.get("cause") or described.get("error") or "no cause was given"))
