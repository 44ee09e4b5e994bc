"""Wait until the devices have said what became of the new model: keep the token for whoever hears the last one."""

from __future__ import annotations

from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.cloud.rounds.tokens import TokenRequest, keep_token, succeed
from fedgrass.protocol.records import RoundRecord

connect("rounds", "step_functions")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point."""
    await_rollout(own_services(), TokenRequest.model_validate(event))


def await_rollout(services: Services, request: TokenRequest) -> None:
    """Keep the token, and complete it at once if there is nothing to wait for."""
    record = keep_token(
        services, request, phase="rolling_out", name="rollout_token", otherwise="is not rolling out a model"
    )
    complete_rollout(services, record)


def complete_rollout(services: Services, record: RoundRecord) -> None:
    """Let the state machine go on if every device that was alive at the opening has reported, or the model was taken back."""
    # A model that was taken back is waited for no longer: what devices report now is of another one.
    done = record.rolled_out or record.outcome == "refused" or record.settings.rollout.wait_seconds == 0
    if record.phase == "rolling_out" and done and record.rollout_token:
        succeed(services.step_functions, record.rollout_token, {"active": record.active})
