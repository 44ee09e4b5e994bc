"""The demo's report of a round, whatever became of it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fedgrass.local.demo import report as pages
from fedgrass.local.demo.summary import DemoReport, RoundSummary, summarise_round
from fedgrass.protocol.messages import Base, Cohort
from fedgrass.protocol.records import Participation, RoundRecord
from fedgrass.protocol.report import Evaluation, ModelEntry, RoundReport
from fedgrass.protocol.settings import FleetSettings

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
BASE = ModelEntry(version="1.0.0", parameters_sha256="a" * 64, graph_sha256="b" * 64)
NEW = BASE.model_copy(update={"version": "1.1.0", "parameters_sha256": "c" * 64})


def at(seconds: float) -> int:
    return int((START + timedelta(seconds=seconds)).timestamp() * 1000)


def record(outcome: Any, **changes: Any) -> RoundRecord:
    return RoundRecord(
        fleet="f",
        round=1,
        phase="closed",
        outcome=outcome,
        execution="e",
        settings=FleetSettings(),
        base=Base(version="1.0.0", parameters_key="k", parameters_sha256="a" * 64, graph_sha256="b" * 64),
        version="1.1.0",
        cohort=Cohort(salt="s"),
        alive=2,
        asked=2,
        quorum=2,
        opened_at=START,
        deadline=START + timedelta(hours=1),
        last_upload_at=at(2),
        **changes,
    )


def report(outcome: Any) -> RoundReport:
    return RoundReport(
        fleet="f",
        round=1,
        outcome=outcome,
        strategy="fedavg",
        started_at=START + timedelta(seconds=3),
        finished_at=START + timedelta(seconds=4),
        base=BASE,
        model=NEW,
        evaluation_base=Evaluation(loss=1.0, accuracy=0.5, examples=10),
        evaluation=Evaluation(loss=0.5, accuracy=0.9, examples=10),
    )


def test_a_released_round_ends_on_its_own_model() -> None:
    parts = [Participation(fleet="f", round=1, thing="a", model_outcome="active")]
    summary = summarise_round(record("released", last_model_at=at(6)), report("released"), parts)
    assert (summary.version, summary.accuracy, summary.devices_active) == ("1.1.0", 0.9, ["a"])
    assert summary.seconds_train == 2
    assert summary.seconds_aggregate == 1
    assert summary.seconds_release_to_active == 2
    assert summary.seconds_last_upload_to_active == 4


def test_a_held_round_ends_on_its_base() -> None:
    summary = summarise_round(record("held"), report("held"), [])
    assert (summary.version, summary.accuracy, summary.parameters_sha256) == ("1.0.0", 0.5, "a" * 64)
    assert summary.seconds_release_to_active is None
    assert summary.seconds_last_upload_to_active is None


def test_a_round_without_enough_updates_has_no_report_and_still_a_summary() -> None:
    summary = summarise_round(record("insufficient_updates"), None, [])
    assert (summary.outcome, summary.version, summary.accuracy) == ("insufficient_updates", "1.0.0", None)
    assert summary.seconds_aggregate is None


@pytest.mark.parametrize("outcome", ["released", "held", "insufficient_updates"])
def test_the_page_shows_a_round_whatever_became_of_it(tmp_path: Path, outcome: str) -> None:
    times = {"last_model_at": at(6)} if outcome == "released" else {}
    found = None if outcome == "insufficient_updates" else report(outcome)
    summary: RoundSummary = summarise_round(record(outcome, **times), found, [])
    whole = DemoReport(
        devices=2,
        seed=0,
        rounds=[summary],
        final_version=summary.version,
        final_accuracy=summary.accuracy,
        initial_accuracy=0.1,
        best_single_device_accuracy=0.5,
        single_device_accuracy={"a": 0.5},
        centralised_accuracy=0.9,
        examples={"a": 10},
        devices_active_on_final=2,
        setup_seconds=1.0,
        start_seconds=2.0,
        total_seconds=3.0,
    )
    pages.write(whole, tmp_path)
    assert DemoReport.model_validate_json((tmp_path / "report.json").read_text()) == whole
    assert outcome in (tmp_path / "index.html").read_text()
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
