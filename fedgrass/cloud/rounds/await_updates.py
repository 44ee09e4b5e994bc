"""Wait for updates: keep the state machine's token for whoever counts the last one, or end the waiting now."""

from __future__ import annotations

from typing import Any

from fedgrass.cloud.rounds.missing import end_if_nobody_can_answer
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.cloud.rounds.tokens import TokenRequest, keep_token, succeed
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.collecting import round_to_aggregate
from fedgrass.protocol.records import RoundRecord

connect("rounds", "step_functions")


def handler(event: dict[str, object], _context: object) -> dict[str, Any] | None:
    """Entry point."""
    if "aggregate_now" in event:
        return aggregate_now(own_services(), event)
    await_updates(own_services(), TokenRequest.model_validate(event))
    return None


def aggregate_now(services: Services, event: dict[str, Any]) -> dict[str, object]:
    """End the collecting of the open round, which another execution runs; returns what that goes on with.

    It is how an execution that is started with ``{"aggregate_now": true}`` ends.

    Raises
    ------
    RoundRefusedError
        If no round collects, or it has fewer updates than it needs.
    ConfigurationError
        If the input is something else.
    """
    # Exactly true: a typo such as "false" must not end a round.
    if event["aggregate_now"] is not True:
        raise ConfigurationError(
            f"aggregate_now: expected true, found {event['aggregate_now']!r}; leave it out to start rounds"
        )
    record = round_to_aggregate(services.rounds, services.fleet)
    if record.collect_token is not None:
        succeed(services.step_functions, record.collect_token, {"uploaded": record.uploaded})
    return {"round": record.round, "uploaded": record.uploaded}


def await_updates(services: Services, request: TokenRequest) -> None:
    """Keep the token, and complete it at once if the quorum came before the token did."""
    record = keep_token(
        services, request, phase="collecting", name="collect_token", otherwise="collects no updates any more"
    )
    # Updates may have come, and trainers may have gone, before there was a token to complete.
    complete_collecting(services, record)
    end_if_nobody_can_answer(services, record)


def complete_collecting(services: Services, record: RoundRecord) -> None:
    """Let the state machine go on if ``record`` has all it waits for.

    The count and the token are in one item: whichever is written last sees the other.
    """
    if record.phase != "collecting" or not record.collect_token:
        return
    # In a stream, updates of earlier rounds count as much.
    streams = record.settings.is_asynchronous
    if record.collected or (streams and updates_at_hand(services.rounds, record) >= record.quorum):
        succeed(services.step_functions, record.collect_token, {"uploaded": record.uploaded})
