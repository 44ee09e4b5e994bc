"""A round's report, built as the job goes along, and the one-line version of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation
from fedgrass.protocol.gain import Gain
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import report_key
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.profile import ProfileReference
from fedgrass.protocol.report import (
    Best,
    Evaluation,
    Hold,
    ModelEntry,
    Outcome,
    QuarantinedEntry,
    ReleaseEntry,
    RoundReport,
)
from fedgrass.protocol.reported import reported


@dataclass
class Phases:
    """Seconds that each phase took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Time what is done in the block."""
        start = time.perf_counter()
        try:
            yield
        # A phase that fails has its time, too: the report of a held round shows where it went.
        finally:
            self.seconds[phase] = round(time.perf_counter() - start, 4)


@dataclass
class ReportBuilder:
    """What is known so far."""

    fleet: str
    round: int
    strategy: str
    started_at: datetime
    base: Base
    phases: Phases = field(default_factory=Phases)
    aggregation: Aggregation | None = None
    refused_by_name: tuple[QuarantinedEntry, ...] = ()
    refused_more: int = 0
    model: Bundle | None = None
    evaluation_base: Evaluation | None = None
    evaluation: Evaluation | None = None
    evaluated_by_devices: int = 0
    best: Best | None = None
    hold: Hold | None = None
    inference_accuracy: dict[str, float] = field(default_factory=dict)
    server_state_sha256: str | None = None
    release: ReleaseEntry | None = None
    privacy: PrivacyLedger | None = None
    profile: ProfileReference | None = None

    def build(self, outcome: Outcome, reason: str, finished_at: datetime) -> RoundReport:
        """Return the report.

        Parameters
        ----------
        outcome
            What became of the round.
        reason
            Why, in words.
        finished_at
            When it was found, with its time zone.

        Returns
        -------
        RoundReport
            The report of all that is known so far.
        """
        result = self.aggregation
        return RoundReport(
            fleet=self.fleet,
            round=self.round,
            outcome=outcome,
            reason=reason,
            strategy=self.strategy,
            started_at=self.started_at,
            finished_at=finished_at,
            base=ModelEntry.of(self.base),
            model=ModelEntry.of(self.model.manifest) if self.model else None,
            updates=result.updates if result else (),
            # Refusals by name come first: they were made before anything was opened.
            quarantined=(*self.refused_by_name, *(result.quarantined if result else ())),
            quarantined_more=self.refused_more,
            evaluation_base=self.evaluation_base,
            evaluation=self.evaluation,
            evaluated_by_devices=self.evaluated_by_devices,
            reported=reported((one.num_examples, one.metrics) for one in result.updates) if result else {},
            personal=Gain.of(one.metrics for one in result.updates) if result else None,
            model_bytes=sum(file.bytes for file in self.model.manifest.files.values()) if self.model else 0,
            local_parameters=sum(p.size for p in self.model.manifest.local_parameters) if self.model else 0,
            best=self.best,
            hold=self.hold if outcome == "held" else None,
            inference_accuracy=self.inference_accuracy,
            server_state_sha256=self.server_state_sha256,
            release=self.release,
            profile=self.profile,
            privacy=self.privacy,
            bytes_read=result.bytes_read if result else 0,
            seconds=self.phases.seconds,
        )


def summary(report: RoundReport) -> str:
    """Return the report as one line of JSON, for the job's exit message; what is beyond 1 KB is cut off there."""
    line: dict[str, Any] = {
        "outcome": report.outcome,
        "version": report.model.version if report.model else None,
        "participants": len(report.updates),
        "quarantined": len(report.quarantined) + report.quarantined_more,
        "accuracy": report.evaluation.accuracy if report.evaluation else None,
        "loss": report.evaluation.loss if report.evaluation else None,
        "metrics": report.evaluation.metrics or None if report.evaluation else None,
        "report": report_key(report.fleet, report.round),
        # Last and short: SageMaker keeps 1,024 bytes, and what is cut off is then the end of the reason.
        "reason": report.reason[:300],
    }
    return json.dumps({name: value for name, value in line.items() if value is not None})
