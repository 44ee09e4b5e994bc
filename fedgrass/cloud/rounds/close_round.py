"""Close a round that ran to completion, whatever the outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from fedgrass.cloud.rounds.closing import close
from fedgrass.cloud.rounds.going_on import given_settings, go_on
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import ConfigurationError
from fedgrass.logs import log_event
from fedgrass.protocol.budget import beyond_budget_next
from fedgrass.protocol.names import RoundNumber
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_settings import Run, watched
from fedgrass.protocol.runs import asked_metric, run_after, why_over
from fedgrass.protocol.tables import load_round, load_state

_REASON = 300  # characters; the whole reason is in the round's record


class CloseRequest(BaseModel, defer_build=True):
    """What the state machine passes: how many rounds the run has, its execution's input, and the results before this one."""

    round: RoundNumber
    rounds: int
    overrides: dict[str, Any] = Field(default_factory=dict)
    results: list[dict[str, Any]] = Field(default_factory=list)


connect("rounds", "iot_data", "s3", "greengrass", "step_functions")


def handler(event: dict[str, object], _context: object) -> dict[str, Any]:
    """Entry point."""
    return close_round(own_services(), CloseRequest.model_validate(event))


def close_round(services: Services, request: CloseRequest) -> dict[str, Any]:
    """Close the round; returns all results so far, whether another round is to follow, and why not if some are left.

    Where the execution has run as many rounds as its history holds, ``next`` is the one that goes on with the run.
    """
    record = load_round(services.rounds, services.fleet, request.round)
    name, value = watched(record, asked_metric(record))
    # By its name, beside what is always told.
    result: dict[str, Any] = (
        {name: value} if record.settings.until.ends and record.adopted and value is not None else {}
    )
    run = run_after(record)
    left = run.standing.done < request.rounds
    # Done again, it must say the same of a round that it closed: settings and time may be others by now.
    decided = not left or record.phase == "closed"
    ended = record.ended if decided else _why_over(services, record, run, request.overrides)
    # Between two rounds of one run the fleet stays reserved: nobody else opens a round in between.
    record = close(services, request.round, reserve=record.execution if left and not ended else None, ended=ended)
    ended = record.ended  # this function may run twice at once: the one that closed the round decided
    # A few fields only, and the reason cut: an execution's data may have 256 KiB, and up to 500 rounds add up.
    result |= record.model_dump(
        mode="json",
        include={"round", "outcome", "reason", "version", "participants", "quarantined", "accuracy", "active"},
        exclude_none=True,
    )
    results = [*request.results, {**result, "reason": record.reason[:_REASON]}]
    if ended:
        log_event("run_ended", fleet=record.fleet, round=record.round, reason=ended)
    more = left and not ended
    run = run_after(record)  # with what the round cost, which is known only now
    goes_on = more and len(results) >= services.rounds_of_an_execution
    following = go_on(services, record.execution, request.overrides, run) if goes_on else ""
    return {"results": results, "more": more and not goes_on, "ended": ended, "next": following}


def _why_over(services: Services, record: RoundRecord, run: Run, given: Mapping[str, Any]) -> str:
    if over := why_over(record.settings, run, services.now()):
        return over
    # The next round has the fleet's settings as they are when it opens; those that it cannot have are its opening's to refuse.
    with contextlib.suppress(ConfigurationError):
        settings = given_settings(services, given)
        return beyond_budget_next(settings, load_state(services.rounds, services.fleet), record)
    return ""
