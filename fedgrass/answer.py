"""A participant's one answer to a round, as the cloud is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fedgrass.protocol.messages import Announcement, UpdateNotice, as_reason
from fedgrass.protocol.names import update_key
from fedgrass.training import Evaluated, Trained


@dataclass(frozen=True)
class Refusal:
    """Why there will be no update in this round."""

    status: Literal["declined", "failed"]
    reason: str


def notice_of(announcement: Announcement, thing: str, outcome: Trained | Evaluated | Refusal) -> UpdateNotice:
    """Return the message for what became of a round here."""
    fleet, number = announcement.fleet, announcement.round
    fields: dict[str, Any]
    if isinstance(outcome, Refusal):
        fields = {"status": outcome.status, "reason": as_reason(outcome.reason)}
    elif isinstance(outcome, Evaluated):
        fields = {"status": "evaluated", "num_examples": outcome.num_examples, "metrics": outcome.metrics}
    else:
        fields = {
            "status": "uploaded",
            "key": update_key(fleet, number, thing),
            "sha256": outcome.info.sha256,
            "bytes": outcome.info.bytes,
            "num_examples": outcome.num_examples,
            "metrics": outcome.metrics,
            "seconds_train": round(outcome.seconds, 3),
        }
    return UpdateNotice(fleet=fleet, round=number, thing=thing, opened_at=announcement.opened_at, **fields)
