"""End a round that cannot go on: called by the state machine on a failure, and by EventBridge when an execution ends.

A stopped execution runs no Catch, and a failed one may fail in this very function: hence the event as a second way.
"""

from __future__ import annotations

import json
from typing import Any

from botocore.exceptions import ClientError
from pydantic import BaseModel, Field

from cloud.rounds.closing import close
from cloud.rounds.events import tell
from cloud.rounds.record_report import adopt, find_report
from cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import AggregationError
from fedgrass.protocol.records import RoundOutcome, RoundRecord
from fedgrass.protocol.tables import load_round, load_state


class Failure(BaseModel):
    """What a Catch of the state machine passes."""

    error: str = Field(alias="Error")
    cause: str | None = Field(default=None, alias="Cause")


class AbortRequest(BaseModel):
    """What the state machine passes."""

    execution: str
    failure: Failure


class ExecutionEnd(BaseModel):
    """Detail of "Step Functions Execution Status Change"."""

    execution: str = Field(alias="executionArn")
    status: str
    error: str | None = None
    cause: str | None = None


connect("rounds", "iot_data")


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Entry point, called by the state machine or by EventBridge."""
    if "detail" in event:
        execution_ended(own_services(), ExecutionEnd.model_validate(event["detail"]))
        return {}
    return abort_round(own_services(), AbortRequest.model_validate(event))


def abort_round(services: Services, request: AbortRequest) -> dict[str, Any]:
    """End the execution's round, if it has one, and return what went wrong in words."""
    cause = in_words(request.failure.cause or "no cause was given")
    abort(services, request.execution, outcome="failed", reason=f"{request.failure.error}: {cause}")
    return {"error": request.failure.error, "cause": cause}


def execution_ended(services: Services, end: ExecutionEnd) -> None:
    """End the round that an execution left open. Duplicates, and executions that left none, change nothing."""
    if end.status == "ABORTED":
        abort(services, end.execution, outcome="cancelled", reason=end.cause or "the execution was stopped")
    elif end.status in {"FAILED", "TIMED_OUT"}:
        reason = f"the execution ended: {end.error or end.status} {in_words(end.cause or '')}".strip()
        abort(services, end.execution, outcome="failed", reason=reason)


def abort(services: Services, execution: str, *, outcome: RoundOutcome, reason: str) -> None:
    """End the round that ``execution`` holds open; does nothing if it holds none."""
    lock = load_state(services.rounds, services.fleet).open
    if lock is None or lock.execution != execution:
        return
    record = load_round(services.rounds, services.fleet, lock.round)
    if record.job is not None:
        _stop(services, record)
        _keep_release(services, record)
    close(services, record.round, outcome, reason[:1000])


def in_words(cause: str) -> str:
    """Return the message of a function's error, which comes as JSON; any other text as it is."""
    try:
        found = json.loads(cause)
    except ValueError:
        return cause
    return str(found["errorMessage"]) if isinstance(found, dict) and "errorMessage" in found else cause


def _stop(services: Services, record: RoundRecord) -> None:
    if record.phase != "aggregating":
        return
    try:
        services.sagemaker.stop_processing_job(ProcessingJobName=record.job)
    except ClientError as error:
        # Ended already, or never started.
        if error.response["Error"]["Code"] not in {"ValidationException", "ResourceNotFound"}:
            raise


def _keep_release(services: Services, record: RoundRecord) -> None:
    """A model that was released before the end came is the fleet's current one all the same."""
    try:
        report = find_report(services, record)
    except AggregationError as error:
        tell("report_ignored", fleet=record.fleet, round=record.round, reason=str(error))
        return
    if report is not None:
        adopt(services, report)
