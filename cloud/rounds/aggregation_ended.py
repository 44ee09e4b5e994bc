"""Tell the state machine that the Processing job has ended (EventBridge calls this on its change of status)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cloud.rounds.events import tell
from cloud.rounds.services import Services, connect, own_services
from cloud.rounds.tokens import fail, succeed
from fedgrass.errors import AggregationError
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import load_round, load_state


class JobEvent(BaseModel):
    """EventBridge's word on a job; the detail is what DescribeProcessingJob answers."""

    detail: dict[str, Any]


connect("rounds", "step_functions")


def handler(event: dict[str, Any], _context: object) -> None:
    """Entry point, called by EventBridge."""
    aggregation_ended(own_services(), JobEvent.model_validate(event))


def aggregation_ended(services: Services, event: JobEvent) -> None:
    """Settle the open round if the event is of its job; any other job is none of its business."""
    state = load_state(services.rounds, services.fleet)
    if state.open is None:
        return
    record = load_round(services.rounds, services.fleet, state.open.round)
    if record.job is not None and record.job == event.detail.get("ProcessingJobName"):
        settle(services, record, event.detail)


def settle(services: Services, record: RoundRecord, job: dict[str, Any]) -> None:
    """Complete or fail the token of the round's job, if the job has ended."""
    status = job["ProcessingJobStatus"]
    token = record.job_token
    if token is None or status not in {"Completed", "Failed", "Stopped"}:
        return
    said = job.get("ExitMessage") or job.get("FailureReason")
    tell("aggregation_ended", fleet=record.fleet, round=record.round, status=status, said=said)
    if status == "Completed":
        succeed(services.step_functions, token, {"job": status})
    else:
        cause = f"Processing job {record.job} {status.lower()}: {said or 'it gave no reason; see its log'}"
        fail(services.step_functions, token, error=AggregationError.__name__, cause=cause)
