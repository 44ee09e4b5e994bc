"""A run of more rounds than an execution's history holds goes on in a next execution of the same state machine.

The next one is started when the last round of this one is closed, and holds the fleet from then on. It opens nothing before this
one has succeeded: until then whoever stops this one stops the run, and from then on whoever stops the next one.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError
from pydantic import ValidationError

from fedgrass.cloud.rounds.changes import change
from fedgrass.cloud.rounds.services import Services
from fedgrass.errors import ConfigurationError, RoundRefusedError, first_problem
from fedgrass.logs import log_event
from fedgrass.protocol.fleet_state import STATE_KEY
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_settings
from fedgrass.protocol.writes import BusyError, update_item

RUNNING = frozenset({"RUNNING", "PENDING_REDRIVE"})
FORGOTTEN = "forgotten"
RUN = "run"
"""Name of the run in an execution's input, beside the settings."""

_LOOKS, _PAUSE_SECONDS = 20, 0.5  # then Step Functions repeats the task


def go_on(services: Services, execution: str, given: Mapping[str, Any], run: Run) -> str:
    """Start the run's next execution, to which the fleet is reserved, and return its ARN; twice is once.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    execution
        ARN of the one whose last round is closed, and which has the fleet reserved.
    given
        Its input.
    run
        As it is after that round.
    """
    machine = services.setting("FEDGRASS_STATE_MACHINE_ARN")
    # The time as well: the table of a fleet that was set up again begins with round 1 once more.
    name = f"run-{run.first}-after-{run.standing.done}-{int(run.started_at.timestamp() * 1000)}"
    run = run.model_copy(update={"previous": execution})
    request = {**given, RUN: run.model_dump(mode="json", exclude_none=True)}
    try:
        started = services.step_functions.start_execution(stateMachineArn=machine, name=name, input=json.dumps(request))
        following = started["executionArn"]
        log_event("run_goes_on", fleet=services.fleet, first=run.first, done=run.standing.done, execution=following)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ExecutionAlreadyExists":
            raise
        # This function ran before, and its answer was lost: that one has ended since, or the round's figures have changed.
        following = f"{machine.replace(':stateMachine:', ':execution:')}:{name}"
    table = services.rounds
    with contextlib.suppress(
        table.meta.client.exceptions.ConditionalCheckFailedException
    ):  # it was stopped, or did so before
        handed = change(
            put={"reserved": following}, condition="#reserved = :execution", values={":execution": execution}
        )
        update_item(table, Key={"fleet": services.fleet, "key": STATE_KEY}, **handed)
    return following


def given_settings(services: Services, given: Mapping[str, Any]) -> FleetSettings:
    """Return the fleet's settings, as they are now, with those of an execution's input over them.

    Raises
    ------
    ConfigurationError
        If the input names a setting that does not exist or is out of range.
    """
    # The console's input box begins with a comment.
    overrides = {name: value for name, value in given.items() if name != RUN and name.lower() != "comment"}
    return load_settings(services.rounds, services.fleet).overridden(overrides)


def given_run(given: Mapping[str, Any]) -> Run | None:
    """Return the run that an execution goes on with, by its input; None if it begins one.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    try:
        return None if given.get(RUN) is None else Run.model_validate(given[RUN])
    except ValidationError as error:
        problem = first_problem(error, RUN, prefix=f"{RUN}.", found=True)
        raise ConfigurationError(f"input of the execution: {problem}") from error


def await_previous(services: Services, previous: str, execution: str) -> None:
    """Wait until the execution before this one is over; if it was stopped, this one is stopped too.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    previous
        ARN of the execution before this one.
    execution
        ARN of this one.

    Raises
    ------
    RoundRefusedError
        If it was stopped, or failed.
    BusyError
        If it takes longer than usual.
    """
    for _ in range(_LOOKS):
        status = status_of(services, previous)
        if status in {"SUCCEEDED", FORGOTTEN}:
            return
        if status == "ABORTED":
            # Who stopped that one stopped the run, which is no failure.
            cause = f"the run's execution before this one was stopped ({previous})"
            services.step_functions.stop_execution(executionArn=execution, error="Cancelled", cause=cause)
        if status not in RUNNING:
            raise RoundRefusedError(
                f"fleet {services.fleet!r}: the run's execution before this one ended as {status} ({previous}); "
                "`fedgrass round resume` goes on with the run"
            )
        time.sleep(_PAUSE_SECONDS)
    raise BusyError(f"fleet {services.fleet!r}: the run's execution before this one has not ended yet ({previous})")


def status_of(services: Services, execution: str) -> str:
    """Return an execution's status; `FORGOTTEN` if Step Functions knows none of that name."""
    try:
        return str(services.step_functions.describe_execution(executionArn=execution)["status"])
    except ClientError as error:
        if error.response["Error"]["Code"] != "ExecutionDoesNotExist":
            raise
        # Step Functions forgets executions after 90 days; one of which nothing is known does not run.
        return FORGOTTEN
