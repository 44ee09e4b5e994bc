"""Wait for updates: keep the state machine's token for whoever counts the last one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.cloud.rounds.tokens import succeed
from fedgrass.errors import RecordError
from fedgrass.protocol.names import RoundNumber
from fedgrass.protocol.records import RoundRecord


class TokenRequest(BaseModel):
    """What the state machine passes to a task that waits."""

    round: RoundNumber
    token: str


connect("rounds", "step_functions")


def handler(event: dict[str, Any], _context: object) -> None:
    """Entry point."""
    await_updates(own_services(), TokenRequest.model_validate(event))


def await_updates(services: Services, request: TokenRequest) -> None:
    """Keep the token, and complete it at once if the quorum came before the token did."""
    record = change_round(
        services.rounds,
        services.fleet,
        request.round,
        put={"collect_token": request.token},
        condition="#phase = :collecting",
        values={":collecting": "collecting"},
    )
    if record is None:
        raise RecordError(f"round {request.round} of fleet {services.fleet!r} collects no updates any more")
    complete_collecting(services, record)


def complete_collecting(services: Services, record: RoundRecord) -> None:
    """Let the state machine go on if ``record`` has all it waits for.

    The count and the token are in one item: whichever is written last sees the other.
    """
    if record.phase == "collecting" and record.collected and record.collect_token:
        succeed(services.step_functions, record.collect_token, {"uploaded": record.uploaded})
