"""A participant's one answer to a round, as the cloud is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedgrass.protocol.messages import Announcement, UpdateNotice, as_reason
from fedgrass.protocol.names import update_key


@dataclass(frozen=True)
class Answer:
    """What became of a round here. ``sha256`` and ``bytes`` are of the update that was ``uploaded``."""

    status: Literal["uploaded", "evaluated", "declined", "failed"]
    reason: str = ""
    sha256: str | None = None
    bytes: int = 0
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def notice_of(announcement: Announcement, thing: str, answer: Answer) -> UpdateNotice:
    """Make the message that tells the cloud of an answer.

    Parameters
    ----------
    announcement
        The round.
    thing
        Name of the participant.
    answer
        What became of the round here.

    Returns
    -------
    UpdateNotice
        Without figures if the round was declined or failed; with key and digest if an update was uploaded.
    """
    fleet, number = announcement.fleet, announcement.round
    fields: dict[str, Any] = {"reason": as_reason(answer.reason)}
    if answer.status in ("uploaded", "evaluated"):
        fields = {"num_examples": answer.num_examples, "metrics": answer.metrics}
    if answer.status == "uploaded":
        fields |= {
            "key": update_key(fleet, number, thing),
            "sha256": answer.sha256,
            "bytes": answer.bytes,
            "seconds_train": round(answer.seconds, 3),
        }
    return UpdateNotice(
        fleet=fleet, round=number, thing=thing, opened_at=announcement.opened_at, status=answer.status, **fields
    )
