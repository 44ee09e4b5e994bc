"""End a round that cannot go on: called by the state machine on a failure, and by EventBridge when an execution ends.

A stopped execution runs no Catch, and a failed one may fail in this very function: hence the event as a second way.
"""

from __future__ import annotations

import contextlib
import json

from botocore.exceptions import ClientError
from pydantic import BaseModel, Field

from fedgrass.cloud.ending.outcome import end
from fedgrass.cloud.rounds.changes import change
from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.protocol.fleet_state import STATE_KEY
from fedgrass.protocol.records import RoundOutcome, ended_key
from fedgrass.protocol.tables import load_round, load_state
from fedgrass.protocol.writes import put_item, update_item

_NOTED_SECONDS = 7 * 86_400  # longer than any function of an ended execution goes on


class Failure(BaseModel, defer_build=True):
    """What a Catch of the state machine passes."""

    error: str = Field(alias="Error")
    cause: str | None = Field(default=None, alias="Cause")


class AbortRequest(BaseModel, defer_build=True):
    """What the state machine passes."""

    execution: str
    failure: Failure


class ExecutionEnd(BaseModel, defer_build=True):
    """Detail of "Step Functions Execution Status Change"."""

    execution: str = Field(alias="executionArn")
    status: str
    error: str | None = None
    cause: str | None = None


# While Lambda initialises: clients take most of a cold start.
connect("rounds", "iot_data", "s3", "greengrass", "sagemaker")


def handler(event: dict[str, object], _context: object) -> dict[str, object]:
    """Entry point, called by the state machine or by EventBridge."""
    if "detail" in event:
        execution_ended(own_services(), ExecutionEnd.model_validate(event["detail"]))
        return {}
    return abort_round(own_services(), AbortRequest.model_validate(event))


def abort_round(services: Services, request: AbortRequest) -> dict[str, object]:
    """End the execution's round, if it has one, and return what went wrong in words."""
    cause = in_words(request.failure.cause or "no cause was given")
    abort(services, request.execution, outcome="failed", reason=f"{request.failure.error}: {cause}")
    return {"error": request.failure.error, "cause": cause}


def execution_ended(services: Services, end: ExecutionEnd) -> None:
    """End the round that an execution left open. Duplicates, and executions that left none, change nothing."""
    # Step Functions says ABORTED for StopExecution: a person, or `fedgrass round cancel`.
    if end.status == "ABORTED":
        abort(services, end.execution, outcome="cancelled", reason=end.cause or "the execution was stopped")
    elif end.status in {"FAILED", "TIMED_OUT"}:
        reason = f"the execution ended: {end.error or end.status} {in_words(end.cause or '')}".strip()
        abort(services, end.execution, outcome="failed", reason=reason)


def abort(services: Services, execution: str, *, outcome: RoundOutcome, reason: str) -> None:
    """End the round that an execution holds open, and have the execution open none any more.

    Does nothing if it holds none. What the round's job decided before stays: then what that asks for is done, and the
    round is closed as it is.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    execution
        ARN of the execution of the state machine.
    outcome
        The round's outcome, unless it has one.
    reason
        Why, in words.
    """
    # First: an opening that is on its way sees either this, or is seen below.
    _note_end(services, execution)
    state = load_state(services.rounds, services.fleet)
    if state.reserved == execution:
        give_up_reservation(services, execution)
    if state.open is None or state.open.execution != execution:
        return
    record = load_round(services.rounds, services.fleet, state.open.round)
    # The outcome before anything is stopped: the job's own decision may have come first, and then the model is
    # released.
    record = end(services.rounds, record, outcome, reason)
    # Only a job whose result nobody wants any more; a decided one may still be writing its report.
    if record.job is not None and record.outcome in {"cancelled", "failed"}:
        _stop(services, record.job)
    # The lock must be freed even if Greengrass or S3 does not answer now.
    close(services, record.round, outcome, reason[:1000], whatever_happens=True)


def _note_end(services: Services, execution: str) -> None:
    # The table's TTL attribute: seconds since the epoch.
    expires = int(services.now().timestamp()) + _NOTED_SECONDS
    put_item(services.rounds, Item={"fleet": services.fleet, "key": ended_key(execution), "expires": expires})


def give_up_reservation(services: Services, execution: str) -> None:
    """Let others open a round, if the next was this execution's."""
    table = services.rounds
    with contextlib.suppress(table.meta.client.exceptions.ConditionalCheckFailedException):  # it has gone on, or ended
        freed = change(remove=["reserved"], condition="#reserved = :execution", values={":execution": execution})
        update_item(table, Key={"fleet": services.fleet, "key": STATE_KEY}, **freed)


def in_words(cause: str) -> str:
    """Return the message of a function's error, which comes as JSON; any other text as it is."""
    try:
        found = json.loads(cause)
    except ValueError:
        return cause
    return str(found["errorMessage"]) if isinstance(found, dict) and "errorMessage" in found else cause


def _stop(services: Services, job: str) -> None:
    try:
        services.sagemaker.stop_processing_job(ProcessingJobName=job)
    except ClientError as error:
        # Ended already, or never started.
        # ValidationException is what SageMaker answers for a job that has ended.
        if error.response["Error"]["Code"] not in {"ValidationException", "ResourceNotFound"}:
            raise
