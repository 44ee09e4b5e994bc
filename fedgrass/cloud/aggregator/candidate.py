"""From an aggregation's result to a model that can be released: written, evaluated, judged, published; not deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation
from fedgrass.cloud.aggregator.canaries import CanaryError
from fedgrass.cloud.aggregator.candidate_evaluation import judged_model
from fedgrass.cloud.aggregator.evaluate import publish_best
from fedgrass.cloud.aggregator.release import FleetClients, prepare_round, upload
from fedgrass.cloud.aggregator.release_gate import decided, raised
from fedgrass.cloud.aggregator.report import ReportBuilder
from fedgrass.cloud.aggregator.server_state import publish_state
from fedgrass.cloud.ending.deployment import SupersededError
from fedgrass.files import write_atomically
from fedgrass.inference import write_bundle
from fedgrass.protocol.fleet_score import fleet_score
from fedgrass.protocol.names import SCORE, model_prefix, report_prefix
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Outcome, ReleaseEntry


def without_model(result: Aggregation, minimum: int) -> tuple[Outcome, str]:
    """Return outcome and reason of a round whose aggregation gave no model; ``minimum`` is its updates needed."""
    if result.problem:
        return "held", result.problem
    return "insufficient_updates", f"{len(result.updates)} good updates; the minimum is {minimum}"


@dataclass(frozen=True)
class Candidate:
    """Prepares the candidate model of a round; what it finds goes into ``report``."""

    record: RoundRecord
    clients: FleetClients
    report: ReportBuilder
    scratch: Path
    clock: Callable[[], datetime]

    def prepare(self, base: Bundle, result: Aggregation) -> tuple[Outcome, str]:
        """Write, evaluate and publish what an aggregation gave, short of deploying it; notes it all in the report.

        Parameters
        ----------
        base
            The model that the round started from.
        result
            The aggregation. The model that it gave is made in ``scratch / "new"``.

        Returns
        -------
        tuple
            The outcome to propose for the round, and the reason in words.

        Raises
        ------
        TransferError
            If the storage fails.
        ReleaseError
            If Greengrass refuses the component version.
        """
        if result.parameters is None:
            # Too few updates are no hold: the round has no model that a person could release.
            self.report.hold = "not_finite" if result.not_finite else None
            return without_model(result, self.record.settings.min_updates)
        with self.report.phases.timed("write"):
            application = self.record.settings.inference
            new = write_bundle(
                base,
                result.parameters,
                self.scratch / "new",
                version=self.record.version,
                int8=application.int8,
                sparsity=application.sparsity,
            )
        self.report.model = new
        with self.report.phases.timed("evaluate"):
            verdict = judged_model(self.record, self.clients, self.report, base, new, self.scratch, self.clock)
        self._note_threshold(new)
        self.report.hold = verdict.hold
        # Figures decide only where they are of the model as devices have it.
        before, after = self.report.evaluation_base, self.report.evaluation
        if new.manifest.local_parameters and not self.report.evaluated_by_devices:
            before = after = None  # of no device's model
        outcome, reason = decided(self.record.settings, self.record.round, verdict, before, after)
        if outcome == "held":
            return self._hold(new, reason)
        if outcome == "advanced":
            with self.report.phases.timed("release"):
                # State and best figures before the model's own files: once the manifest lies there, the model is
                # complete.
                self._publish_with(new)
                upload(new, self.clients.bucket, self.record.fleet)
            return outcome, reason
        try:
            with self.report.phases.timed("release"):
                self._prepare_release(new)
        except (SupersededError, CanaryError) as error:
            return self._hold(new, str(error))
        return outcome, reason

    def _note_threshold(self, new: Bundle) -> None:
        """Put the fleet's threshold beside an anomaly detector's files, which are uploaded with it."""
        figures = self.report.evaluation.metrics if self.report.evaluation is not None else {}
        content = fleet_score(new.manifest.anomaly_quantile, figures)
        if content is not None:
            write_atomically(new.folder / SCORE, content)

    def _hold(self, new: Bundle, reason: str) -> tuple[Outcome, str]:
        # Beside the report, not under models/: what was held is nobody's base. `fedgrass model release` finds it there.
        prefix = report_prefix(self.record.fleet, self.record.round)
        self._publish_state(new, prefix)
        self.clients.bucket.write_file(prefix + PARAMETERS, new.path(PARAMETERS))
        return "held", reason

    def _publish_state(self, new: Bundle, prefix: str) -> None:
        # An optimizer without state, such as plain averaging, leaves no file.
        if self.report.aggregation is not None and self.report.aggregation.state:
            self.report.server_state_sha256 = publish_state(
                self.clients.bucket,
                prefix,
                new,
                self.report.aggregation.state,
                self.report.strategy,
                self.scratch,
            )

    def _publish_with(self, new: Bundle) -> None:
        """Put beside a model what the next round wants of it, and devices do not."""
        prefix = model_prefix(self.record.fleet, self.record.version)
        self._publish_state(new, prefix)
        if self.report.best is not None and self.report.evaluation is not None:
            best = raised(self.report.best, self.report.evaluation, self.report.best.evaluation_set)
            publish_best(self.clients.bucket, prefix, best)

    def _prepare_release(self, new: Bundle) -> None:
        self._publish_with(new)
        _, component_arn = prepare_round(new, self.clients, self.record)
        # Whoever deploys it adds the deployment.
        self.report.release = ReleaseEntry(
            component_arn=component_arn, deployment_id="", target_arn=self.clients.thing_group_arn
        )
