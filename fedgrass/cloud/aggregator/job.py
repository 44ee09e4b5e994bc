"""A round's Processing job, from the update list to the report.

It prepares all that a release needs, writes down what it proposes, makes that the round's outcome
(`fedgrass.cloud.ending.outcome`), and only then deploys. Run again after a kill it gives the same result: the update list is
pinned at the first run, the result depends on nothing else, a proposal that exists is the one that counts, and a report that
exists ends the job before it starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate, contribute
from fedgrass.cloud.aggregator.candidate import Candidate
from fedgrass.cloud.aggregator.conclusion import Conclusion
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.aggregator.evaluate import load_evaluation_set
from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.failed_devices import failures_of, number_of
from fedgrass.cloud.aggregator.helpers import FleetHelpers
from fedgrass.cloud.aggregator.instances import Instance
from fedgrass.cloud.aggregator.masked_sum import Masked
from fedgrass.cloud.aggregator.privacy import beyond_budget, judged, next_clip_norm, noise_of
from fedgrass.cloud.aggregator.profiling import ProfileJob
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.report import Phases, ReportBuilder
from fedgrass.cloud.aggregator.round_input import RoundInput
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.server_state import load_state
from fedgrass.cloud.aggregator.summed_profile import SummedRound
from fedgrass.cloud.aggregator.trusted import own_update, with_own_update
from fedgrass.cloud.aggregator.update_list import UpdateList
from fedgrass.cloud.ending.announcement import task_of
from fedgrass.errors import HelpersMissingError, TransferError
from fedgrass.logs import Log
from fedgrass.protocol.names import partial_prefix
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.refusals import refusals_before
from fedgrass.protocol.report import Outcome, RoundReport
from fedgrass.protocol.statistics_settings import tells_sums
from fedgrass.secure.sealing import Context
from fedgrass.strategies import Strategy
from fedgrass.update.codecs import Floats

_ALONE = Instance()


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
    instance
        Which of the job's instances this is.
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
        instance: Instance = _ALONE,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._record = record
        self._instance = instance
        self._clients = clients
        self._bucket = clients.bucket
        self._source = source
        self._scratch = scratch
        self._clock = clock
        self._log = Log(__name__, fleet=record.fleet, round=record.round)
        self._conclusion = Conclusion(record, clients, self._log)
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
        if self._instance.count > 1:
            self._remove_partial()
        return report

    def _run(self) -> RoundReport:
        # Each question below is for a job that was killed and started again: what an earlier run finished is not done
        # twice.
        finished = self._conclusion.finished()
        if finished is not None:
            self._log.log_event("round_finished_before", outcome=finished.outcome)
            return finished
        # Somebody may have ended the round since the job was started; then only what that asks for is done.
        if self._conclusion.is_open():
            proposal = self._conclusion.proposed() or self._conclusion.propose(self._reported(*self._found()))
            self._conclusion.decide(proposal)
        return self._conclusion.reached(lambda reason: self._reported("held", reason))

    def _reported(self, outcome: Outcome, reason: str) -> RoundReport:
        return self._report.build(outcome, reason, self._clock())

    def _found(self) -> tuple[Outcome, str]:
        """Aggregate, judge, and prepare the release; returns what the round's outcome should be."""
        strategy = self._record.settings.made_strategy()
        with self._phases.timed("base"):
            base = download_bundle(self._bucket, self._record.base, self._scratch / "base")
        # Trained from the base that was just fetched, and only for a strategy that compares with it.
        strategy = with_own_update(strategy, lambda: self._own_update(base))
        given = RoundInput(self._record, self._clients, self._source, strategy)
        with self._phases.timed("list"):
            # Fixed before anything is read: what comes later counts as late.
            pinned = given.pinned
            self._report.refused_by_name, self._report.refused_more = pinned.refused, pinned.more
        exact = self._record.settings.task == "statistics" and not tells_sums(self._record.settings)
        if exact:
            return self._profiled(base, given)
        if self._record.privacy is not None:
            with self._phases.timed("privacy"):
                self._report.privacy = judged(self._record.privacy)
            # Before an update is read: with a spent budget nothing may be learnt from them.
            if passed := beyond_budget(self._report.privacy, self._record.settings.privacy):
                return "held", passed
        try:
            if self._record.settings.task == "statistics":
                return self._profiled(base, given, self._summed(base, given))
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
        candidate = Candidate(self._record, self._clients, self._report, self._scratch, self._clock)
        outcome, reason = candidate.prepare(base, result)
        return outcome, "; ".join(filter(None, (reason, result.note)))

    def _summed(self, base: Bundle, given: RoundInput) -> SummedRound:
        record = self._record
        noise = noise_of(record.settings.privacy, given.pinned.noise_seed)
        return SummedRound(
            task_of(record, self._bucket.name), record.settings, noise, self._masked(base), self._scratch
        )

    def _profiled(self, base: Bundle, given: RoundInput, summed: SummedRound | None = None) -> tuple[Outcome, str]:
        job = ProfileJob(self._record, self._bucket, self._source, self._report, self._clock, self._counted, summed)
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
                    noise=noise_of(self._record.settings.privacy, pinned.noise_seed, self._record.tree_step),
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
        return self._instance.count > 1 and not strategy.needs_all and self._record.settings.secure is None

    def _masked(self, base: Bundle) -> Masked | None:
        task = task_of(self._record, self._bucket.name).secure
        if task is None:
            return None
        record, clients = self._record, self._clients
        base_sha256 = base.manifest.parameters_sha256
        context = Context.of_round(record.fleet, record.round, record.cohort.salt, base_sha256, task)
        helpers = FleetHelpers(record, clients.rounds, clients.bucket, clients.iot_data, self._scratch, self._log)
        return Masked(task, context, helpers)

    def contribute(self) -> None:
        """Do the part of an instance that is not the first: nothing, if it has no lanes, or the round its result already."""
        # More instances than lanes: the last ones have nothing to sum.
        if not self._instance.has_lanes or self._record.settings.secure is not None:
            return
        if self._conclusion.finished() is not None or self._conclusion.proposed() is not None:
            return
        # As the first instance decides: it would wait for nobody's sums then, and no sum may be left in the bucket.
        privacy = self._record.privacy
        if privacy is not None and beyond_budget(judged(privacy), self._record.settings.privacy):
            return
        strategy = self._record.settings.made_strategy()
        base = download_bundle(self._bucket, self._record.base, self._scratch / "base")
        given = RoundInput(self._record, self._clients, self._source, strategy)
        contribute(
            base,
            self._source,
            given.pinned.updates,
            strategy,
            given.expected(base),
            self._share(given.pinned),
            noise=noise_of(self._record.settings.privacy, given.pinned.noise_seed, self._record.tree_step),
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
        return self._instance.partial_sums(self._record, self._bucket, self._scratch, pinned)

    def _remove_partial(self) -> None:
        """Remove what the instances told each other; nobody reads it once there is a proposal."""
        try:
            self._bucket.remove_below(partial_prefix(self._record.fleet, self._record.round))
        except TransferError as error:  # the bucket's lifecycle does, two days later
            self._log.log_event("partial_sums_not_removed", reason=str(error))
