"""What late updates came to: in which later round each had its turn, how old it was, and on what it was trained.

All of it follows from the rounds' records and one round's report. Of rounds no page reads more than an update may be late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedgrass.account import Account
from fedgrass.cloud.console import charts
from fedgrass.protocol import tables
from fedgrass.protocol.records import Participation, RoundRecord
from fedgrass.protocol.report import RoundReport, UpdateEntry

_MOST_LATER = 100  # one BatchGetItem; what `staleness` may be at most


@dataclass(frozen=True)
class Turn:
    """The round in which an update had its turn, and how many models came between its base and that round's."""

    round: int
    age: int


def takes_late(record: RoundRecord) -> bool:
    """Whether an update that comes after the round may count in a later one."""
    return record.settings.task == "fit" and record.settings.strategy.staleness > 0


def late_word(record: RoundRecord | None) -> str:
    """Return what became of an answer that came after its round; nothing of the rounds that there is no record of."""
    if record is None:
        return "late"
    return "after its round" if takes_late(record) else "late, not counted"


def of_earlier(record: RoundRecord) -> str:
    """Say how many of the updates that a round disposed of were of earlier rounds, and how far back; empty if none was."""
    if not record.from_earlier:
        return ""
    back = record.round - min(record.took or {record.round: 0})
    return f"{record.from_earlier:,} of earlier rounds, up to {back} back"


def rounds_late(record: RoundRecord) -> float | None:
    """Return how many rounds late the updates were that a round disposed of, in the mean; None if it tells of none."""
    took = {number: count for number, count in (record.took or {}).items() if number <= record.round}
    count = sum(took.values())
    return sum((record.round - number) * here for number, here in took.items()) / count if count else None


def turns(parts: Iterable[Participation], records: Sequence[RoundRecord]) -> dict[int, Turn]:
    """Find in which round a device's updates had their turn.

    Parameters
    ----------
    parts
        A device's, in some rounds.
    records
        Those rounds and what came after them, in any order.

    Returns
    -------
    dict
        By the update's round; without those that had none yet, or of which the records do not tell.
    """
    ordered = sorted(records, key=lambda record: record.round)
    found = {}
    for part in parts:
        later = [record for record in ordered if record.round >= part.round]
        if part.status != "uploaded" or not later or later[0].round != part.round:
            continue
        turn = next((record for record in later if _has_taken(record, part)), None)
        if turn is not None:
            found[part.round] = Turn(turn.round, _models_between(later, turn.round))
    return found


def _has_taken(record: RoundRecord, part: Participation) -> bool:
    if record.took is None:
        # A record of an earlier release does not say: what came in time was combined.
        return record.round == part.round and not part.late and record.participants is not None
    if not record.took.get(part.round):
        return False
    # Others' updates of that round may have had their turn before this one came.
    came = part.received_at or 0
    return record.aggregated_at is None or came <= record.aggregated_at.timestamp() * 1000


def _models_between(later: Sequence[RoundRecord], turn: int) -> int:
    """Count how often the base changes from the first of some rounds to another, as the job counts an update's age."""
    bases = [record.base.parameters_sha256 for record in later if record.round <= turn]
    return sum(before != after for before, after in pairwise(bases))


def later_turns(account: Account, record: RoundRecord, last: int) -> list[tuple[int, int]]:
    """Return which later rounds a round's updates had their turn in, and how many in each.

    Parameters
    ----------
    account
        The fleet's.
    record
        The round.
    last
        Number of the fleet's last round.
    """
    if not takes_late(record):
        return []
    end = min(last, record.round + min(_MOST_LATER, record.settings.strategy.staleness))
    later = tables.rounds_numbered(account.rounds_table, account.fleet, range(record.round + 1, end + 1))
    return [(one.round, count) for one in later if (count := (one.took or {}).get(record.round, 0))]


def trained_on(account: Account, record: RoundRecord, entries: Sequence[UpdateEntry]) -> dict[int | None, str]:
    """Return the version that updates of a page were trained on, by the earlier round that they are of (None: this round)."""
    numbers = sorted({entry.late_for for entry in entries if entry.late_for is not None})
    earlier = tables.rounds_numbered(account.rounds_table, account.fleet, numbers) if numbers else []
    return {None: record.base.version, **{one.round: one.base.version for one in earlier}}


def has_ages(record: RoundRecord, report: RoundReport) -> bool:
    """Whether a report's updates are of several rounds, or could have been."""
    return record.settings.is_asynchronous or any(entry.late_for for entry in report.updates)


def curves(records: Sequence[RoundRecord]) -> list[charts.Chart | None]:
    """Return the curves of a stream's rounds, the oldest first; none of rounds that wait."""
    streaming = [record.settings.is_asynchronous for record in records]
    if not any(streaming):
        return []
    told = list(zip(records, streaming, strict=True))
    return [
        charts.line(
            "Updates used",
            [(r.round, r.participants and float(r.participants) if is_one else None) for r, is_one in told],
        ),
        charts.line(
            "Rounds that updates came late, mean", [(r.round, rounds_late(r) if is_one else None) for r, is_one in told]
        ),
    ]
