"""Late updates: those that arrived after an earlier round's job had listed its updates, and were not consumed since.

The reports themselves say which updates were consumed. What the report of a round that combined its updates names as used, and
what any report names as refused, is never taken again; a round without such a report leaves its updates to the next. So each
update counts once, nothing else has to be kept, and a job that is run again finds the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from fedgrass.cloud.aggregator.listed import listed_updates
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import EarlierRound
from fedgrass.errors import RecordError, TransferError
from fedgrass.protocol.names import report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import MAX_REPORT_BYTES, RoundReport
from fedgrass.protocol.tables import Table, load_round


def earlier_rounds(rounds: Table, bucket: Bucket, record: RoundRecord, staleness: int) -> dict[int, EarlierRound]:
    """Find those of the last rounds whose late updates this round can use.

    A round with another graph, or one that only evaluated, has none. Age counts the models that came after a round's
    base.

    Parameters
    ----------
    rounds
        The rounds' table.
    bucket
        The fleet's bucket, for the rounds' reports.
    record
        The round that is being aggregated.
    staleness
        Rounds to look back.

    Returns
    -------
    dict
        By round number.

    Raises
    ------
    TransferError
        If a report cannot be read: without it an update could count twice.
    """
    records: list[RoundRecord] = []
    spent: dict[str, set[str]] = {}
    # The newest first, as `staleness_of` counts; round 0 is no round.
    for number in range(record.round - 1, max(0, record.round - 1 - staleness), -1):
        try:
            earlier = load_round(rounds, record.fleet, number)
        except RecordError:
            continue  # the fleet started over in between
        # By key and ETag: a device that sent another object under the same key since has not had that one counted.
        for key, etag in _consumed(bucket, earlier):
            spent.setdefault(key, set()).add(etag)
        records.append(earlier)
    # From the parameters' digests rather than from the rounds' numbers: rounds that released nothing age nobody.
    ages = staleness_of(record.base.parameters_sha256, [earlier.base.parameters_sha256 for earlier in records])
    return {
        earlier.round: EarlierRound(earlier.base.parameters_sha256, age, earlier.cohort, spent)
        for earlier, age in zip(records, ages, strict=True)
        # Another graph has other parameters: its updates cannot be added.
        if earlier.settings.task == "fit" and earlier.base.graph_sha256 == record.base.graph_sha256
    }


def staleness_of(base: str, earlier: Iterable[str]) -> Iterator[int]:
    """Yield the staleness of each of some rounds' bases, given the newest first: how many models came after it.

    Several rounds may start from one base, as one without a model does not change it: they are equally stale.

    >>> list(staleness_of("c", ["c", "b", "b", "a"]))
    [0, 1, 1, 2]
    """
    age = 0
    for one in earlier:
        if one != base:
            base, age = one, age + 1
        yield age


def late_updates(
    source: RoundUpdates, earlier: Mapping[int, EarlierRound], things: Collection[str] | None = None
) -> list[UpdateReference]:
    """List the late updates of earlier rounds, without the very objects that were consumed already.

    Whatever else lies there was told of in those rounds' reports.

    Parameters
    ----------
    source
        The round's updates, from which those of other rounds are reached.
    earlier
        What `earlier_rounds` found.
    things
        Names of the fleet's devices; updates of others are left out. None takes all.

    Returns
    -------
    list
        References, each with the round that it is for.
    """
    return [
        replace(reference, round=number)
        for number, known in earlier.items()
        for reference in listed_updates(source.of_round(number), things).updates
        if reference.etag not in known.spent.get(reference.key, ())
    ]


def _consumed(bucket: Bucket, record: RoundRecord) -> list[tuple[str, str]]:
    """Return key and ETag of the updates that a round's report disposes of: the record says whether it was one that counts."""
    # Whatever report lies there, the record decides: the updates of a round that ended so are not spent.
    if record.outcome in {"failed", "cancelled"}:
        return []
    key = report_key(record.fleet, record.round)
    content = bucket.read(key, max_bytes=MAX_REPORT_BYTES)
    if content is None:
        return []
    try:
        report = RoundReport.read(content, name=bucket.uri(key))
    except RecordError as error:
        raise TransferError(
            f"{error}. It says which updates were counted; move it away to count them all again"
        ) from error
    if report.base.parameters_sha256 != record.base.parameters_sha256:
        return []  # an earlier fleet of this name left it
    spent = [(entry.key, entry.etag) for entry in report.quarantined]
    # A round with too few combined none of them: only its refusals stand.
    if report.outcome != "insufficient_updates":
        spent += [(entry.key, entry.etag) for entry in report.updates]
    return spent
