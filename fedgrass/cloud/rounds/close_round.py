"""Close a round that ran to completion, whatever the outcome."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.protocol.names import RoundNumber
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
    """Close the round; returns all results so far and whether another round is to follow."""
    more = len(request.results) + 1 < request.rounds
    record = load_round(services.rounds, services.fleet, request.round)
    # Between two rounds of one execution the fleet stays reserved: nobody else opens a round in between.
    record = close(services, request.round, reserve=record.execution if more else None)
    # A few fields only, and the reason cut: an execution's data may have 256 KiB, and up to 500 rounds add up.
    result = record.model_dump(
        mode="json",
        include={"round", "outcome", "reason", "version", "participants", "quarantined", "accuracy", "active"},
        exclude_none=True,
    )
    results = [*request.results, {**result, "reason": record.reason[:_REASON]}]
    return {"results": results, "more": more}
