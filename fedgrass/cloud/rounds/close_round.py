"""Close a round that ran to completion, whatever the outcome."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.logs import log_event
from fedgrass.protocol.metrics import Metric
from fedgrass.protocol.names import RoundNumber
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import ADOPTED
from fedgrass.protocol.run_settings import watched, why_over
from fedgrass.protocol.tables import load_round

_REASON = 300  # characters; the whole reason is in the round's record


class CloseRequest(BaseModel, defer_build=True):
    """What the state machine passes: how many rounds it is to run, and the results of those before this one."""

    round: RoundNumber
    rounds: int
    results: list[dict[str, Any]] = Field(default_factory=list)


connect("rounds", "iot_data", "s3", "greengrass")


def handler(event: dict[str, object], _context: object) -> dict[str, Any]:
    """Entry point."""
    return close_round(own_services(), CloseRequest.model_validate(event))


def close_round(services: Services, request: CloseRequest) -> dict[str, Any]:
    """Close the round; returns all results so far, whether another round is to follow, and why not if some are left."""
    record = load_round(services.rounds, services.fleet, request.round)
    name, value = watched(record, _metric(record))
    # By its name, beside what is always told: the run is judged by what its results tell.
    result: dict[str, Any] = (
        {name: value} if record.settings.until.ends and record.adopted and value is not None else {}
    )
    left = len(request.results) + 1 < request.rounds
    ended = _why_over(services, record, request.results, result) if left else ""
    # Between two rounds of one execution the fleet stays reserved: nobody else opens a round in between.
    record = close(services, request.round, reserve=record.execution if left and not ended else None)
    # A few fields only, and the reason cut: an execution's data may have 256 KiB, and up to 500 rounds add up.
    result |= record.model_dump(
        mode="json",
        include={"round", "outcome", "reason", "version", "participants", "quarantined", "accuracy", "active"},
        exclude_none=True,
    )
    results = [*request.results, {**result, "reason": record.reason[:_REASON]}]
    if ended:
        log_event("run_ended", fleet=record.fleet, round=record.round, reason=ended)
    return {"results": results, "more": left and not ended, "ended": ended}


def _metric(record: RoundRecord) -> Metric | None:
    return record.settings.until.metric or record.settings.gate.metric


def _why_over(services: Services, record: RoundRecord, before: list[dict[str, Any]], last: dict[str, Any]) -> str:
    """Say why the execution's run is over; empty if it goes on. A round that is not of training ends none."""
    until = record.settings.until
    if not until.ends or record.settings.task != "fit":
        return ""
    # A round without a model tells no accuracy, of a classifier neither.
    has_accuracy = any("accuracy" in one for one in (*before, last))
    name = _metric(record) or ("accuracy" if has_accuracy else "loss")
    values = [one.get(name) if one.get("outcome", "released") in ADOPTED else None for one in (*before, last)]
    first = load_round(services.rounds, services.fleet, before[0]["round"]) if before else record
    # Done again, it must say the same of a round that it closed.
    until_now = (record.closed_at or services.now()) - first.opened_at
    return why_over(until, name, values, until_now.total_seconds() / 3600)
