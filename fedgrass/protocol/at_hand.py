"""How many updates there are for an open round: its own, and in asynchronous rounds those of earlier ones that wait.

Nothing is counted down, and no counter is shared between rounds. A round's record says how many updates devices sent for it, in
time and late; the record of a round whose job has combined some says whose they were (`RoundRecord.took`). What was sent and not
taken is at hand. So whoever looks last sees everything, however notices, jobs and openings interleave, and however often each
of them runs. It decides only when a round goes on: which updates count, the job's list and the reports say.
"""

from __future__ import annotations

from collections import Counter

from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.tables import Table, rounds_between

_UNTOLD = frozenset({"replayed", "uninvited", "unknown_thing", "unexpected_key", "duplicate"})
"""Reasons of quarantine for what no notice was counted of, or what was taken before."""


def updates_at_hand(rounds: Table, record: RoundRecord) -> int:
    """Count the updates that a round's job would find now, as far as devices have told of them.

    Parameters
    ----------
    rounds
        The rounds' table.
    record
        The round, not yet aggregated.

    Returns
    -------
    int
        In synchronous rounds those of the round itself.
    """
    if not record.settings.is_asynchronous:
        return record.contributed
    first = record.round - record.settings.strategy.staleness
    earlier = rounds_between(rounds, record.fleet, first, record.round - 1)
    taken: Counter[int] = Counter()
    for one in earlier:
        taken.update(_disposed(one))
    waiting = (
        # An update that was taken before its notice came makes it less than nothing for a moment.
        max(0, one.contributed + one.late_updates - taken[one.round])
        for one in earlier
        if one.settings.task == "fit" and one.base.graph_sha256 == record.base.graph_sha256
    )
    return record.contributed + sum(waiting)


def _disposed(record: RoundRecord) -> dict[int, int]:
    """Return how many updates of which rounds count in no later round any more."""
    if record.took is not None or record.outcome in {None, "failed", "cancelled", "insufficient_updates"}:
        return record.took or {}
    # A record of an earlier release does not say: what came in time was combined.
    return {record.round: record.contributed}


def taken_by(report: RoundReport) -> dict[str, int]:
    """Return of which rounds a report disposes of updates, and of how many of each, as a record has it.

    A round with too few leaves them to the next one; see `fedgrass.cloud.aggregator.late`, which goes by the same.
    """
    found = {(entry.late_for, entry.thing) for entry in report.quarantined if entry.reason not in _UNTOLD}
    if report.outcome != "insufficient_updates":
        found |= {(entry.late_for, entry.thing) for entry in report.updates}
    return dict(Counter(str(late_for or report.round) for late_for, _ in found))
