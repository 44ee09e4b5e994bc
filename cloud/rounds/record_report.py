"""Take over what the aggregator found: figures into the round's record, and a released model as the fleet's current one."""

from __future__ import annotations

import contextlib
from typing import Any

from botocore.exceptions import ClientError
from pydantic import BaseModel, ValidationError

from cloud.rounds.changes import change, change_round
from cloud.rounds.events import tell
from cloud.rounds.metrics import measure_report
from cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import AggregationError, first_problem
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import RoundNumber, parameters_key, report_key
from fedgrass.protocol.records import STATE_KEY, RoundRecord
from fedgrass.protocol.refusals import count_refusals
from fedgrass.protocol.report import ADOPTED, RoundReport
from fedgrass.protocol.tables import load_round, rounds_between, set_current_model


class RoundRequest(BaseModel):
    """What the state machine passes."""

    round: RoundNumber


connect("rounds", "s3")


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Entry point."""
    return record_report(own_services(), RoundRequest.model_validate(event))


def record_report(services: Services, request: RoundRequest) -> dict[str, Any]:
    """Record the round's report and return its outcome.

    The report decides, not the job's event: a round goes on even if that event was lost.

    Raises
    ------
    AggregationError
        If there is no report, or it is not one of this round.
    """
    record = load_round(services.rounds, services.fleet, request.round)
    report = find_report(services, record)
    if report is None:
        raise AggregationError(
            f"round {record.round} of fleet {record.fleet!r}: job {record.job} left no report at "
            f"s3://{services.bucket}/{report_key(record.fleet, record.round)}; see the job's log"
        )
    held = _held_in_a_row(services, report)
    adopt(services, report)
    count_refusals(services.rounds, report)
    changed = change_round(
        services.rounds,
        record.fleet,
        record.round,
        put={
            "phase": "rolling_out",
            "outcome": report.outcome,
            "reason": report.reason,
            "aggregated_at": services.now().isoformat(),
            "participants": len(report.updates),
            "quarantined": len(report.quarantined) + report.quarantined_more,
            "accuracy": report.evaluation.accuracy if report.evaluation else None,
            "loss": report.evaluation.loss if report.evaluation else None,
            "hold": report.hold,
            "held_in_a_row": held,
        },
        remove=["job_token"],
        condition="#phase = :aggregating",
        values={":aggregating": "aggregating"},
    )
    tell("report", fleet=record.fleet, round=record.round, outcome=report.outcome, reason=report.reason or None)
    if changed is not None:
        measure_report(services, report, held)
    return {"outcome": report.outcome}


def _held_in_a_row(services: Services, report: RoundReport) -> int:
    """Return how many rounds, this one the last, the gate held for one reason; rounds that made no model do not count."""
    if report.hold is None:
        return 0
    for before in rounds_between(services.rounds, report.fleet, report.round - _LOOK_BACK, report.round - 1):
        if before.adopted or (before.outcome == "held" and before.hold != report.hold):
            break
        if before.outcome == "held":
            return before.held_in_a_row + 1
    return 1


_LOOK_BACK = 20


def find_report(services: Services, record: RoundRecord) -> RoundReport | None:
    """Read the round's report; None if there is none. Raises `AggregationError` if it is not one of this round."""
    key = report_key(record.fleet, record.round)
    try:
        content = services.s3.get_object(Bucket=services.bucket, Key=key)["Body"].read()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "NoSuchKey" or (code == "AccessDenied" and not _exists(services, key)):
            return None
        raise
    try:
        report = RoundReport.model_validate_json(content)
    except ValidationError as error:
        raise AggregationError(f"s3://{services.bucket}/{key}: {first_problem(error)}") from error
    expected = (record.fleet, record.round, record.base.parameters_sha256)
    if (report.fleet, report.round, report.base.parameters_sha256) != expected:
        raise AggregationError(
            f"s3://{services.bucket}/{key}: is of round {report.round} of fleet {report.fleet!r} from base "
            f"{report.base.version}, expected round {record.round} of {record.fleet!r} from {record.base.version}"
        )
    return report


def _exists(services: Services, key: str) -> bool:
    """Whether there is such an object: what is missing S3 denies to a role that may list some prefixes only."""
    listed = services.s3.list_objects_v2(Bucket=services.bucket, Prefix=key, MaxKeys=1)
    return any(entry["Key"] == key for entry in listed.get("Contents", ()))


def adopt(services: Services, report: RoundReport) -> None:
    """Make a released or advanced model the base of the next round, and keep the accountant's word on what is spent."""
    if report.privacy is not None:
        _keep_privacy(services, report)
    if report.outcome not in ADOPTED or report.model is None:
        return
    model = Base(
        version=report.model.version,
        parameters_key=parameters_key(report.fleet, report.model.version),
        parameters_sha256=report.model.parameters_sha256,
        graph_sha256=report.model.graph_sha256,
    )
    set_current_model(services.rounds, report.fleet, model)


def _keep_privacy(services: Services, report: RoundReport) -> None:
    table = services.rounds
    words = {"privacy": report.privacy.model_dump(mode="json")} if report.privacy else {}
    change_round(table, report.fleet, report.round, put=words)
    # A later round has spent more than this report knows of; its own report will tell.
    with contextlib.suppress(table.meta.client.exceptions.ConditionalCheckFailedException):
        table.update_item(
            Key={"fleet": report.fleet, "key": STATE_KEY},
            **change(put=words, condition="#last = :round", values={":round": report.round}),
        )
