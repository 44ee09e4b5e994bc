"""Tell the state machine that the Processing job has ended (EventBridge calls this on its change of status)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedgrass.cloud.ending.finish import restore_canaries
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.cloud.rounds.tokens import fail, succeed
from fedgrass.errors import AggregationError, OutOfMemoryError
from fedgrass.logs import log_event
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import load_round, load_state

# 137 is 128 + SIGKILL: what a container leaves when the kernel ends it for its memory.
_NO_MEMORY = re.compile(r"exit code: 137\b|out[ _]?of[ _]?memory|more memory", re.IGNORECASE)


class JobEvent(BaseModel, defer_build=True):
    """EventBridge's event about a job; the detail is what DescribeProcessingJob answers."""

    detail: dict[str, Any]


connect("rounds", "step_functions")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point, called by EventBridge."""
    aggregation_ended(own_services(), JobEvent.model_validate(event))


def aggregation_ended(services: Services, event: JobEvent) -> None:
    """Settle the open round if the event is of its job; any other job is none of its business.

    The job of a round that is closed may have given its canaries a model in its last moment: now it gives none any more.
    """
    name = str(event.detail.get("ProcessingJobName"))
    state = load_state(services.rounds, services.fleet)
    # The event may be of an earlier round's job, or of one on another machine: the name has to match.
    if state.open is not None:
        record = load_round(services.rounds, services.fleet, state.open.round)
        if record.job == name:
            settle(services, record, event.detail)
            return
    number = _round_of(name)
    if number is None or number > state.last:
        return
    record = load_round(services.rounds, services.fleet, number)
    if record.job == name and record.phase == "closed":
        restore_canaries(services.place, record)


def _round_of(name: str) -> int | None:
    """Return the number in a job's name (`fedgrass.cloud.rounds.start_aggregation.job_name`); None if it is none of ours."""
    # From the end: a fleet's name may hold dashes, too. The names are `PREFIX-FLEET-ROUND-DIGEST`.
    parts = name.split("-")
    return int(parts[-2]) if len(parts) > 3 and parts[-2].isdecimal() else None


def settle(services: Services, record: RoundRecord, job: Mapping[str, Any]) -> None:
    """Complete or fail the waiting task of the round's job, if the job has ended.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    record
        The round, with the task's token.
    job
        What DescribeProcessingJob or the event says of the job.
    """
    status = job["ProcessingJobStatus"]
    token = record.job_token
    if token is None or status not in {"Completed", "Failed", "Stopped"}:
        return
    # The job's own words first; FailureReason is SageMaker's, such as a machine that could not be had.
    said = job.get("ExitMessage") or job.get("FailureReason")
    log_event("aggregation_ended", fleet=record.fleet, round=record.round, status=status, said=said)
    if status == "Completed":
        succeed(services.step_functions, token, {"job": status})
    else:
        cause = f"Processing job {record.job} {status.lower()}: {said or 'it gave no reason; see its log'}"
        # By class: the state machine's Catch tells out of memory, which is tried on a larger machine, from the rest.
        error = OutOfMemoryError if status == "Failed" and _ran_out_of_memory(job) else AggregationError
        fail(services.step_functions, token, error=error.__name__, cause=cause)


def _ran_out_of_memory(job: Mapping[str, Any]) -> bool:
    """Whether the job's container was killed, as the kernel does where memory ends, or SageMaker or the job says so."""
    said = f"{job.get('ExitMessage') or ''} {job.get('FailureReason') or ''}"
    return bool(_NO_MEMORY.findall(said))
