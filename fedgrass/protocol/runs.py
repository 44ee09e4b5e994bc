"""A run from one of its rounds to the next, as their records tell it."""

from __future__ import annotations

from datetime import datetime

from fedgrass.protocol.costs import cost_after
from fedgrass.protocol.metrics import Metric
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_settings import Run, watched
from fedgrass.protocol.settings import FleetSettings


def asked_metric(record: RoundRecord) -> Metric | None:
    """Return the name of the figure that a round's run is to go by; None if the settings leave it open."""
    return record.settings.until.metric or record.settings.gate.metric


def metric_of(run: Run, last: RoundRecord) -> str:
    """Return the name of the figure that a run goes by, given its newest round."""
    return run.standing.metric or watched(last, asked_metric(last))[0]


def run_after(record: RoundRecord) -> Run:
    """Return what a round's run is when that round is closed."""
    run = _run_before(record)
    # A round without a model tells no accuracy, of a classifier neither.
    metric = asked_metric(record) or ("accuracy" if run.standing.metric == "accuracy" else None)
    name, value = watched(record, metric)
    value, least = value if record.adopted else None, record.settings.until.min_gain
    standing = run.standing.after(name, value, least, cost_after(run.standing.cost, record))
    return run.model_copy(update={"standing": standing})


def run_without(record: RoundRecord) -> Run:
    """Return what a round's run is if that round counts as none: what it cost is spent all the same."""
    run = _run_before(record)
    cost = cost_after(run.standing.cost, record)
    return run.model_copy(update={"standing": run.standing.model_copy(update={"cost": cost})})


def why_over(settings: FleetSettings, run: Run, now: datetime) -> str:
    """Say why a run is over before its rounds are; empty if it goes on. Rounds that are not of training end none, but by cost."""
    if settings.task != "fit":
        return run.standing.cost.why_over(settings.until)
    return run.standing.why_over(settings.until, (now - run.started_at).total_seconds() / 3600)


def _run_before(record: RoundRecord) -> Run:
    # Records of earlier releases do not tell their run.
    return record.run or Run(first=record.round, started_at=record.opened_at)
