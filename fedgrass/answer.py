"""A participant's one answer to a round, as the cloud is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedgrass.protocol.message import MAX_MESSAGE_BYTES, as_reason
from fedgrass.protocol.messages import Announcement, UpdateNotice
from fedgrass.protocol.names import update_key
from fedgrass.protocol.sums import MAX_TEXT, Sums


@dataclass(frozen=True)
class Answer:
    """What became of a round here. ``sha256`` and ``bytes`` are of the update that was ``uploaded``.

    ``sums`` are what the figures of an evaluation are made of (`fedgrass.protocol.sums`), ``base_sums`` those of the other model.
    """

    status: Literal["uploaded", "evaluated", "declined", "failed"]
    reason: str = ""
    sha256: str | None = None
    bytes: int = 0
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    sums: str | None = None
    base_sums: str | None = None


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
    # A decline tells its reason and nothing else: figures of training would tell of data that its owner held back.
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
        # Exact figures beside a noisy update would give away what the noise hides.
        if announcement.update.hides_figures:
            fields |= {"num_examples": 1, "metrics": {}, "seconds_train": 0.0}
    notice = UpdateNotice(
        fleet=fleet, round=number, thing=thing, opened_at=announcement.opened_at, status=answer.status, **fields
    )
    return _with_sums(notice, answer) if answer.status == "evaluated" else notice


def _with_sums(notice: UpdateNotice, answer: Answer) -> UpdateNotice:
    """Add the sums that fit into a message: with all classes' scores, else the counts alone, else none."""
    texts = {"sums": answer.sums, "base_sums": answer.base_sums}
    # Both models lose their scores together: an AUC of one alone is compared with nothing.
    for shorter in (lambda text: text, _without_scores):
        told = notice.model_copy(update={name: text and shorter(text) for name, text in texts.items()})
        longest = max((len(text) for text in (told.sums, told.base_sums) if text), default=0)
        if longest <= MAX_TEXT and _size(told) <= MAX_MESSAGE_BYTES:
            return told
    return notice


def _without_scores(text: str) -> str:
    return Sums.decode(text).without_scores().encode()


def _size(notice: UpdateNotice) -> int:
    return len(notice.model_dump_json(by_alias=True, exclude_none=True).encode())
