"""Reports of rounds as tables, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedgrass.errors import RecordError
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import QuarantinedEntry, RoundReport, UpdateEntry


class Judged(Protocol):
    """A `RoundReport`, or the result of aggregating a folder."""

    @property
    def updates(self) -> Sequence[UpdateEntry]:
        """The updates that were used."""

    @property
    def quarantined(self) -> Sequence[QuarantinedEntry]:
        """Those that were refused."""


@dataclass(frozen=True)
class UpdateRow:
    """What became of one update. ``weight`` is its share of the sum, ``norm`` its L2 norm; both 0 if it was refused."""

    thing: str
    used: bool
    reason: str
    num_examples: int
    weight: float
    norm: float
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)


def rows(judged: Judged) -> list[UpdateRow]:
    """Return a row for each update, used or refused; ``pandas.DataFrame(rows(report))`` takes them as they are.

    Examples
    --------
    >>> import fedgrass
    >>> from fedgrass.data.digits import digits_bundle
    >>> Path("updates").mkdir()
    >>> _ = Path("updates/mallory.safetensors").write_text("not an update")
    >>> (row,) = fedgrass.rows(fedgrass.aggregate(digits_bundle(), Path("updates"), Path("next")))
    >>> row.thing, row.used, row.num_examples
    ('mallory', False, 0)
    """
    used = [UpdateRow(e.thing, True, "", e.num_examples, e.weight, e.norm, e.bytes, e.metrics) for e in judged.updates]
    return used + [UpdateRow(e.thing, False, e.reason, 0, 0.0, 0.0, e.bytes) for e in judged.quarantined]


def read_report(path: str | Path) -> RoundReport:
    """Read the ``report.json`` of a round.

    Raises
    ------
    RecordError
        If it cannot be read, or is not a report.

    Examples
    --------
    >>> import fedgrass
    >>> fedgrass.read_report("round-7/report.json")
    Traceback (most recent call last):
    ...
    fedgrass.errors.RecordError: round-7/report.json: cannot be read (No such file or directory)
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    return RoundReport.read(content, name=str(path))


def rounds(fleet: str, limit: int = 20) -> list[RoundRecord]:
    """Return the last rounds of a fleet in the account of the environment, the newest first.

    Examples
    --------
    >>> import fedgrass
    >>> [(one.round, one.outcome) for one in fedgrass.rounds("mill", limit=2)]  # doctest: +SKIP
    [(8, None), (7, 'released')]
    """
    from fedgrass.account import Account
    from fedgrass.protocol.tables import recent_rounds

    return recent_rounds(Account.of(fleet).rounds_table, fleet, limit)


def reports(fleet: str, limit: int = 20) -> Iterator[RoundReport]:
    """Yield the reports of a fleet's last rounds, the newest first; a round that was never aggregated has none.

    Examples
    --------
    >>> import fedgrass
    >>> [(one.round, len(one.updates)) for one in fedgrass.reports("mill", limit=2)]  # doctest: +SKIP
    [(7, 12), (6, 11)]
    """
    from fedgrass.account import Account
    from fedgrass.protocol.names import report_key
    from fedgrass.protocol.tables import recent_rounds

    account = Account.of(fleet)
    for record in recent_rounds(account.rounds_table, fleet, limit):
        key = report_key(fleet, record.round)
        try:
            stored = account.s3.get_object(Bucket=account.stack.bucket, Key=key)
        # A round that ended before its job ran.
        except account.s3.exceptions.NoSuchKey:
            continue
        yield RoundReport.read(stored["Body"].read(), name=f"s3://{account.stack.bucket}/{key}")
