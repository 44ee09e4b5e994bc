"""What a round costs, estimated from what it used and list prices: the formulas of docs/costs.md, for one round.

It is no bill of AWS's. Heartbeats, connections and what a fleet costs anyway are not in it, nor what helpers of secure
aggregation, silos and a person's own commands use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fedgrass.protocol.prices import Prices
from fedgrass.protocol.records import JobRun, RoundRecord
from fedgrass.protocol.run_settings import Cost
from fedgrass.protocol.settings import FleetSettings

_MB, _GB = 1e6, 1e9
# Of the table in docs/costs.md, whose formulas the test holds against this module.
START_SECONDS, BYTES_PER_SECOND = 300.0, 300e6
_CALL_SECONDS, _CALL_GB = 0.1, 0.5
_WRITES, _READS = 4, 6
_TRANSITIONS = 25


@dataclass(frozen=True)
class Work:
    """What a round uses.

    ``uploads`` are objects of ``upload_bytes`` together; ``notices`` what devices tell; ``deployed`` devices get a model of
    ``model_bytes``, and ``downloads`` a base of ``base_bytes`` that no deployment had brought. ``machines`` are types of
    machines, with the seconds of each.
    """

    uploads: int = 0
    upload_bytes: float = 0.0
    notices: int = 0
    deployed: int = 0
    model_bytes: float = 0.0
    downloads: int = 0
    base_bytes: float = 0.0
    machines: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, record: RoundRecord, now: datetime | None = None) -> Work:
        """Return what a round has used.

        Parameters
        ----------
        record
            The round.
        now
            The time, for a round that is not closed.
        """
        judged = record.judged + record.not_judged
        told = record.contributed + record.declined + record.failed + record.late + judged
        # A model that was taken back went out, and so did the one in its place.
        deployed = record.alive * {"released": 1, "refused": 2}.get(record.outcome or "", 0)
        return cls(
            # Figures without a file are a notice only.
            uploads=record.contributed + record.late_updates if record.bytes_uploaded else 0,
            upload_bytes=float(record.bytes_uploaded),
            notices=told + deployed,
            deployed=deployed,
            model_bytes=float(record.model_bytes),
            downloads=record.taking_part if record.base_bytes else 0,
            base_bytes=float(record.base_bytes),
            machines=_machines(record.jobs, record.aggregated_at or record.closed_at or now),
        )

    def of_another(self, record: RoundRecord, settings: FleetSettings, number: int) -> Work:
        """Return what another round would use at most: all that are asked answer, and a model goes out if one may.

        Parameters
        ----------
        record
            The round whose work this is.
        settings
            The other round's.
        number
            Its number.
        """
        asked = max(self.uploads, 0 if settings.is_asynchronous else record.asked)
        releases = settings.release != "never" and number % settings.release_every == 0
        deployed = record.alive if releases and settings.task == "fit" else 0
        return replace(
            self,
            uploads=asked,
            upload_bytes=asked * self.upload_bytes / max(1, self.uploads),
            notices=asked + deployed,
            deployed=deployed,
            downloads=record.asked if record.outcome == "advanced" else 0,
            base_bytes=self.model_bytes,
        )


def parts(work: Work, prices: Prices) -> dict[str, float]:
    """Return the dollars of each part of a round, by the names of the table in docs/costs.md.

    Parameters
    ----------
    work
        What it uses; machines without a price cost nothing here (`unpriced`).
    prices
        What that costs.
    """
    notice = (prices.message + 2 * prices.rule) / 1e6
    call = _CALL_SECONDS * _CALL_GB * prices.function_second + prices.function_call / 1e6
    counted = (_WRITES * prices.table_write + _READS * prices.table_read) / 1e6
    out = prices.s3_out / _GB
    return {
        "uploads": work.uploads * prices.s3_put / 1000 + work.upload_bytes * prices.s3_month / _GB,
        "aggregator reads": work.uploads * prices.s3_get / 1000,
        "aggregator": sum((prices.of_machine(name) or 0) * seconds / 3600 for name, seconds in work.machines),
        "notices": work.notices * notice,
        "functions": work.notices * call,
        "tables": work.notices * counted,
        "Step Functions": _TRANSITIONS * prices.transition / 1000,
        "roll-out": work.deployed * (prices.job_execution + out * work.model_bytes),
        "base": work.downloads * out * work.base_bytes,
    }


def dollars(work: Work, prices: Prices) -> float:
    """Return what a round costs, all parts together.

    Parameters
    ----------
    work
        What it uses.
    prices
        What that costs.
    """
    return sum(parts(work, prices).values())


def unpriced(work: Work, prices: Prices) -> str:
    """Return a machine that the round had and that has no price; empty if all have one."""
    return next((name for name, _ in work.machines if prices.of_machine(name) is None), "")


def estimated(record: RoundRecord, now: datetime | None = None) -> float:
    """Return the dollars of a round so far.

    Parameters
    ----------
    record
        The round.
    now
        The time, for one that is not closed.
    """
    return dollars(Work.of(record, now), record.settings.prices)


def cost_after(before: Cost, record: RoundRecord) -> Cost:
    """Return what a run's rounds cost with one more, and what the one after that would.

    Parameters
    ----------
    before
        Of the run before that round.
    record
        The round.
    """
    settings, work = record.settings, Work.of(record)
    following = dollars(work.of_another(record, settings, record.round + 1), settings.prices)
    if not record.jobs:  # too few updates: the next round may well have a job
        following = max(following, before.following)
    spent = record.dollars if record.dollars is not None else estimated(record)
    return Cost(
        dollars=before.dollars + spent, following=following, unpriced=unpriced(work, settings.prices) or before.unpriced
    )


def why_beyond(record: RoundRecord) -> str:
    """Say why a run's first round would pass its ``until.dollars`` by itself, as far as its opening knows; empty if it may open.

    Parameters
    ----------
    record
        The round, which has asked nobody yet.
    """
    settings = record.settings
    if settings.until.dollars == 0 or (record.run and record.run.standing.done):
        return ""
    # What its files weigh and how long its job takes is not known yet.
    least = dollars(Work().of_another(record, settings, record.round), settings.prices)
    if least <= settings.until.dollars:
        return ""
    return (
        f"a round of {record.asked} devices costs more than {least:.3g} dollars by list prices, and until.dollars is "
        f"{settings.until.dollars:g}; ask fewer (fraction), release less often (release_every), or raise it"
    )


def _machines(jobs: Sequence[JobRun], end: datetime | None) -> tuple[tuple[str, float], ...]:
    # One that ran out of memory ended when that in its place began.
    ends = [*(job.began_at for job in jobs[1:]), end][: len(jobs)]
    return tuple(
        (job.machine, job.machines * max(0.0, ((until or job.began_at) - job.began_at).total_seconds()))
        for job, until in zip(jobs, ends, strict=True)
    )
