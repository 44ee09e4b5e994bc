"""A round's Processing job, from the update list to the report.

It prepares all that a release needs, writes down what it proposes, makes that the round's outcome
(`fedgrass.cloud.ending.outcome`), and only then deploys. Run again after a kill it gives the same result: the update list is
pinned at the first run, the result depends on nothing else, a proposal that exists is the one that counts, and a report that
exists ends the job before it starts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate, contribute
from fedgrass.cloud.aggregator.candidate import Candidate
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.aggregator.evaluate import load_evaluation_set
from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.failed_devices import failures_of, number_of
from fedgrass.cloud.aggregator.helpers import FleetHelpers
from fedgrass.cloud.aggregator.lanes import lanes_of
from fedgrass.cloud.aggregator.masked_sum import Masked
from fedgrass.cloud.aggregator.privacy import beyond_budget, judged, next_clip_norm, noise_of
from fedgrass.cloud.aggregator.profiling import ProfileJob
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.report import Phases, ReportBuilder
from fedgrass.cloud.aggregator.round_input import RoundInput
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.server_state import load_state
from fedgrass.cloud.aggregator.trusted import own_update, with_own_update
from fedgrass.cloud.aggregator.update_list import UpdateList
from fedgrass.cloud.ending.announcement import task_of
from fedgrass.cloud.ending.finish import finish
from fedgrass.cloud.ending.outcome import decide
from fedgrass.cloud.ending.reports import find_proposal, proposal_key, write_first
from fedgrass.errors import HelpersMissingError, RecordError, ReleaseError, TransferError
from fedgrass.logs import Log
from fedgrass.protocol.names import partial_prefix, report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.refusals import refusals_before
from fedgrass.protocol.report import MAX_REPORT_BYTES, Outcome, RoundReport
from fedgrass.protocol.tables import load_round
from fedgrass.protocol.tables import load_state as load_fleet_state
from fedgrass.secure.sealing import Context
from fedgrass.strategies import Strategy
from fedgrass.update.codecs import Floats


def _now() -> datetime:
    return datetime.now(timezone.utc)


class RoundJob:
    """The sequence of one round's aggregation.

    Parameters
    ----------
    record
        The round's record: its settings, base and new version.
    clients
        The fleet's storage and services.
    source
        Where the round's updates are.
    scratch
        An empty folder for the two bundles.
    instance, instances
        Which of the job's instances this is, from 0, and how many there are.
    patience
        Seconds to wait for other instances; the job's time limit if not given.
    clock
        The time, for the report.
    """

    def __init__(
        self,
        record: RoundRecord,
        clients: FleetClients,
        source: RoundUpdates,
        scratch: Path,
        *,
        instance: int = 0,
        instances: int = 1,
        patience: float | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._record = record
        self._instance = instance
        self._instances = instances
        self._patience = patience
        self._clients = clients
        self._bucket = clients.bucket
        self._source = source
        self._scratch = scratch
        self._clock = clock
        self._log = Log(__name__, fleet=record.fleet, round=record.round)
        self._phases = Phases()
        self._report = ReportBuilder(
            record.fleet, record.round, record.settings.strategy.name, clock(), record.base, self._phases
        )

    def run(self) -> RoundReport:
        """Do what is left to do of the round, and return its report.

        Raises
        ------
        FedgrassError
            If the round cannot be finished now; the job can be run again.
        """
        # The partial sums go last: until there is a report, an instance that is started again needs them.
        report = self._run()
        if self._instances > 1:
            self._remove_partial()
        return report

    def _run(self) -> RoundReport:
        # Each question below is for a job that was killed and started again: what an earlier run finished is not done
        # twice.
        finished = self._finished_report()
        if finished is not None:
            self._log.log_event("round_finished_before", outcome=finished.outcome)
            return finished
        now = self._now()
        # Somebody may have ended the round since the job was started; then only what that asks for is done.
        if now.outcome is None and now.phase == "aggregating":
            proposal = self._proposed() or self._propose(*self._found())
            self._decide(proposal)
        return self._concluded()

    def _found(self) -> tuple[Outcome, str]:
        """Aggregate, judge, and prepare the release; returns what the round's outcome should be."""
        strategy = self._record.settings.strategy.made()
        with self._phases.timed("base"):
            base = download_bundle(self._bucket, self._record.base, self._scratch / "base")
        # Trained from the base that was just fetched, and only for a strategy that compares with it.
        strategy = with_own_update(strategy, lambda: self._own_update(base))
        given = RoundInput(self._record, self._clients, self._source, strategy)
        with self._phases.timed("list"):
            # Fixed before anything is read: what comes later counts as late.
            pinned = given.pinned
            self._report.refused_by_name, self._report.refused_more = pinned.refused, pinned.more
        if self._record.settings.task == "statistics":
            return self._profiled(base, given)
        if self._record.privacy is not None:
            with self._phases.timed("privacy"):
                self._report.privacy = judged(self._record.privacy)
            # Before an update is read: with a spent budget nothing may be learnt from them.
            if passed := beyond_budget(self._report.privacy, self._record.settings.privacy):
                return "held", passed
        try:
            result = self._aggregated(base, given, strategy)
        except HelpersMissingError as error:
            return "helpers_missing", str(error)
        result = self._counted(result)
        self._report.aggregation = result
        # By the norms of the updates that were used, with noise of its own on the count.
        self._adapt_clip([entry.norm for entry in result.updates], given.pinned.noise_seed)
        for entry in result.quarantined:
            self._log.log_event(
                "update_quarantined", thing=entry.thing, reason=entry.reason, times=entry.times, detail=entry.detail
            )
        return Candidate(self._record, self._clients, self._report, self._scratch, self._clock).prepare(base, result)

    def _profiled(self, base: Bundle, given: RoundInput) -> tuple[Outcome, str]:
        job = ProfileJob(self._record, self._bucket, self._source, self._report, self._clock, self._counted)
        return job.run(base, given.pinned.updates, given.expected(base))

    def _aggregated(self, base: Bundle, given: RoundInput, strategy: Strategy) -> Aggregation:
        pinned = given.pinned
        with self._phases.timed("aggregate"):
            return aggregate(
                base,
                self._source,
                pinned.updates,
                strategy,
                given.expected(base),
                AggregationOptions(
                    min_updates=self._record.settings.min_updates,
                    # SCAFFOLD and FedDyn take the share of devices that took part; those not asked count as devices,
                    # too.
                    devices=max(self._record.alive, self._record.taking_part),
                    state=load_state(self._bucket, self._record.base, strategy, self._scratch),
                    # The seed lies in the pinned list: a job that is run again draws the same noise.
                    noise=noise_of(self._record.settings.privacy, pinned.noise_seed),
                    noisy=self._record.settings.privacy.mode != "none",
                    share=self._share(pinned) if self._shares(strategy) else None,
                    masked=self._masked(base),
                    scratch=self._scratch,
                    failures=failures_of(self._clients.rounds, self._record) if strategy.keeps_state else (),
                    number=number_of(self._record),
                ),
            )

    def _shares(self, strategy: Strategy) -> bool:
        # Robust rules and masked sums need every update in one place.
        return self._instances > 1 and not strategy.needs_all and self._record.settings.secure is None

    def _masked(self, base: Bundle) -> Masked | None:
        task = task_of(self._record, self._bucket.name).secure
        if task is None:
            return None
        record, clients = self._record, self._clients
        base_sha256, noise = base.manifest.parameters_sha256, task.noise_steps if task.shared_noise else 0
        context = Context(record.fleet, record.round, record.cohort.salt, base_sha256, task.bits, task.collude, noise)
        helpers = FleetHelpers(record, clients.rounds, clients.bucket, clients.iot_data, self._scratch, self._log)
        return Masked(task, context, helpers)

    def contribute(self) -> None:
        """Do the part of an instance that is not the first: nothing, if it has no lanes, or the round its result already."""
        # More instances than lanes: the last ones have nothing to sum.
        if not lanes_of(self._instance, self._instances) or self._record.settings.secure is not None:
            return
        if self._finished_report() is not None or self._proposed() is not None:
            return
        # As the first instance decides: it would wait for nobody's sums then, and no sum may be left in the bucket.
        privacy = self._record.privacy
        if privacy is not None and beyond_budget(judged(privacy), self._record.settings.privacy):
            return
        strategy = self._record.settings.strategy.made()
        base = download_bundle(self._bucket, self._record.base, self._scratch / "base")
        given = RoundInput(self._record, self._clients, self._source, strategy)
        contribute(
            base,
            self._source,
            given.pinned.updates,
            strategy,
            given.expected(base),
            self._share(given.pinned),
            noise=noise_of(self._record.settings.privacy, given.pinned.noise_seed),
        )

    def _own_update(self, base: Bundle) -> Floats | None:
        with self._phases.timed("own_update"):
            data = load_evaluation_set(self._bucket, self._record.fleet, self._scratch, base.manifest)
            return own_update(base, data, self._record.settings.fit)

    def _adapt_clip(self, norms: list[float], seed: str) -> None:
        found = next_clip_norm(self._record.settings.privacy, norms, seed)
        if found is not None and self._report.privacy is not None:
            self._report.privacy = self._report.privacy.model_copy(update={"clip_norm": found})

    def _counted(self, result: Aggregation) -> Aggregation:
        """Say of each refusal how many the device has had by now."""
        things = [entry.thing for entry in result.quarantined if entry.thing]
        before = refusals_before(self._clients.rounds, self._record.fleet, self._record.round, things)
        now = Counter(things)
        counted = (
            # At least once: an object that is no thing's has no count of its own.
            entry.model_copy(update={"times": before.get(entry.thing, 0) + max(1, now[entry.thing])})
            for entry in result.quarantined
        )
        return replace(result, quarantined=tuple(counted))

    def _share(self, pinned: UpdateList) -> BucketPartialSums:
        settings = self._record.settings
        # All that the sums depend on: a job with another list, strategy or base must not find these.
        what = pinned.model_dump_json() + settings.strategy.model_dump_json() + self._record.base.parameters_sha256
        prefix = partial_prefix(self._record.fleet, self._record.round)
        return BucketPartialSums(
            self._instance,
            self._instances,
            self._bucket,
            f"{prefix}{hashlib.sha256(what.encode()).hexdigest()[:16]}/",
            self._scratch,
            patience=settings.aggregation.timeout_seconds if self._patience is None else self._patience,
        )

    def _remove_partial(self) -> None:
        """Remove what the instances told each other; nobody reads it once there is a proposal."""
        try:
            self._bucket.remove_below(partial_prefix(self._record.fleet, self._record.round))
        except TransferError as error:  # the bucket's lifecycle does, two days later
            self._log.log_event("partial_sums_not_removed", reason=str(error))

    def _now(self) -> RoundRecord:
        return load_round(self._clients.rounds, self._record.fleet, self._record.round)

    def _proposed(self) -> RoundReport | None:
        """Return what an earlier run proposed: its canaries, and its devices, have spoken."""
        proposal = find_proposal(self._bucket.client, self._bucket.name, self._record)
        if proposal is not None:
            self._log.log_event("round_proposed_before", outcome=proposal.outcome)
        return proposal

    def _propose(self, outcome: Outcome, reason: str) -> RoundReport:
        report = self._report.build(outcome, reason, self._clock())
        key = proposal_key(report.fleet, report.round)
        return write_first(self._bucket.client, self._bucket.name, key, self._record, report)

    def _decide(self, proposal: RoundReport) -> None:
        """Make what was proposed the round's outcome, unless it has one."""
        # A newer model has become the fleet's meanwhile: this one is kept as held, so that a person can still choose
        # it.
        if decide(self._clients.rounds, self._record, proposal) == "superseded":
            current = load_fleet_state(self._clients.rounds, self._record.fleet).model
            found = current.version if current is not None else "none"
            reason = (
                f"the fleet's model is {found} now and not {self._record.base.version}, from which the round started"
            )
            decide(
                self._clients.rounds, self._record, proposal.model_copy(update={"outcome": "held", "reason": reason})
            )

    def _concluded(self) -> RoundReport:
        """Do what the round's outcome asks for, whoever wrote it, and return the report."""
        now = self._now()
        report = finish(self._clients.place, now)
        # Cancelled or failed by somebody else: what the job found is nobody's to count.
        if report is None:
            ended = f"{now.outcome}: {now.reason}" if now.outcome else now.phase
            reason = f"the round is not aggregating any more, but {ended}; nothing is released after its end"
            self._log.log_event("round_ended_meanwhile", reason=reason)
            return self._report.build("held", reason, self._clock())
        self._log.log_event(
            "aggregation_finished",
            outcome=report.outcome,
            reason=report.reason,
            updates=len(report.updates),
            seconds=report.seconds,
        )
        return report

    def _finished_report(self) -> RoundReport | None:
        key = report_key(self._record.fleet, self._record.round)
        content = self._bucket.read(key, max_bytes=MAX_REPORT_BYTES)
        if content is None:
            return None
        try:
            report = RoundReport.read(content, name=self._bucket.uri(key))
        except RecordError as error:
            raise TransferError(f"{error}; move it away to run again") from error
        # The round's number alone does not tell two lives of a fleet apart.
        if report.base.parameters_sha256 != self._record.base.parameters_sha256:
            raise ReleaseError(
                f"{self._bucket.uri(key)}: is of another round {self._record.round}, from base {report.base.version}. "
                "An earlier fleet of this name left it: move reports/, updates/ and models/ of that fleet away"
            )
        return report
