"""Take over what the aggregator decided: what its outcome asks for is done, and figures go into the round's record."""

from __future__ import annotations

from pydantic import BaseModel

from fedgrass.cloud.ending.finish import finish
from fedgrass.cloud.ending.outcome import decide, end
from fedgrass.cloud.ending.reports import find_proposal, find_report
from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.metrics import measure_report
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import AggregationError
from fedgrass.logs import log_event
from fedgrass.protocol.names import RoundNumber, report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.tables import load_round, rounds_between

_LOOK_BACK = 20  # rounds


class RoundRequest(BaseModel, defer_build=True):
    """What the state machine passes."""

    round: RoundNumber


connect("rounds", "s3", "greengrass")


def handler(event: dict[str, object], _context: object) -> dict[str, object]:
    """Entry point."""
    return record_report(own_services(), RoundRequest.model_validate(event))


def record_report(services: Services, request: RoundRequest) -> dict[str, object]:
    """Record the round's report and return its outcome.

    The record decides, not the job's event: a round goes on even if that event was lost.

    Raises
    ------
    AggregationError
        If there is no report, or it is not one of this round.
    """
    record = load_round(services.rounds, services.fleet, request.round)
    if record.outcome is None:
        # The job's time ran out, or it ended, between its proposal and its decision: decided here under the same condition.
        # The same condition as in the job, so it does not matter who is faster.
        decide(services.rounds, record, _left(services, record))
        record = load_round(services.rounds, services.fleet, request.round)
        # The decision was refused because the fleet's model is another one by now.
        if record.outcome is None and record.phase == "aggregating":
            record = end(
                services.rounds, record, "held", "the fleet's model changed while the round ran; see its versions"
            )
    report = finish(services.place, record)
    held = _held_in_a_row(services, report) if report is not None else 0
    changed = change_round(
        services.rounds,
        record.fleet,
        record.round,
        put={"phase": "rolling_out", "aggregated_at": services.now().isoformat(), "held_in_a_row": held},
        remove=["job_token"],
        condition="#phase = :aggregating",
        values={":aggregating": "aggregating"},
    )
    log_event(
        "report_recorded", fleet=record.fleet, round=record.round, outcome=record.outcome, reason=record.reason or None
    )
    # Measured by whoever moved the phase: a repetition must not count the round twice.
    if changed is not None and report is not None:
        measure_report(services, report, held)
    return {"outcome": record.outcome}


def _left(services: Services, record: RoundRecord) -> RoundReport:
    report = find_report(services.s3, services.bucket, record) or find_proposal(services.s3, services.bucket, record)
    if report is None:
        raise AggregationError(
            f"round {record.round} of fleet {record.fleet!r}: job {record.job} left no report at "
            f"s3://{services.bucket}/{report_key(record.fleet, record.round)}; see the job's log"
        )
    return report


def _held_in_a_row(services: Services, report: RoundReport) -> int:
    """Return how many rounds, this one the last, the gate held for one reason; rounds that made no model do not count."""
    if report.hold is None:
        return 0
    # Newest first: the last round that made a model tells its own count.
    for before in rounds_between(services.rounds, report.fleet, report.round - _LOOK_BACK, report.round - 1):
        if before.adopted or (before.outcome == "held" and before.hold != report.hold):
            break
        if before.outcome == "held":
            return before.held_in_a_row + 1
    return 1
