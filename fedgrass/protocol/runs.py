"""A run from one of its rounds to the next, as their records tell it."""

from __future__ import annotations

from datetime import datetime

from fedgrass.protocol.metrics import Metric
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.run_settings import Run, watched
from fedgrass.protocol.settings import FleetSettings


def asked_metric(record: RoundRecord) -> Metric | None:
    """Return the name of the figure that a round's run is to go by; None if the settings leave it open."""
    return record.settings.until.metric or record.settings.gate.metric


def run_after(record: RoundRecord) -> Run:
    """Return what a round's run is when that round is closed."""
    # Records of earlier releases do not tell their run.
    run = record.run or Run(first=record.round, started_at=record.opened_at)
    # A round without a model tells no accuracy, of a classifier neither.
    metric = asked_metric(record) or ("accuracy" if run.standing.metric == "accuracy" else None)
    name, value = watched(record, metric)
    standing = run.standing.after(name, value if record.adopted else None, record.settings.until.min_gain)
    return run.model_copy(update={"standing": standing})


def why_over(settings: FleetSettings, run: Run, now: datetime) -> str:
    """Say why a run is over before its rounds are; empty if it goes on. Rounds that are not of training end none."""
    if not settings.until.ends or settings.task != "fit":
        return ""
    return run.standing.why_over(settings.until, (now - run.started_at).total_seconds() / 3600)
