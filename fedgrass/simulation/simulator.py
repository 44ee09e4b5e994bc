"""The rounds of a simulation, from opening to gate."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import TracebackType

from fedgrass.bundle import Bundle, Parameters
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate
from fedgrass.cloud.aggregator.candidate import without_model
from fedgrass.cloud.aggregator.late import staleness_of
from fedgrass.cloud.aggregator.masked_sum import Masked
from fedgrass.cloud.aggregator.privacy import noise_of
from fedgrass.cloud.aggregator.release_gate import decided, judge_by, partly_local
from fedgrass.cloud.aggregator.report import ReportBuilder
from fedgrass.cloud.aggregator.trusted import trained_difference, with_own_update
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.control import require_linear
from fedgrass.engines.base import Engine
from fedgrass.engines.checks import Checked
from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.own_code import own_code
from fedgrass.protocol.messages import Announcement, Base, Cohort, Upload
from fedgrass.protocol.names import next_version, update_prefix
from fedgrass.protocol.report import ADOPTED, Evaluation, Outcome, RoundReport
from fedgrass.protocol.run_settings import watched, why_over
from fedgrass.protocol.secure_settings import announced_secure
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.utility import LOSS
from fedgrass.secure.device import context_of
from fedgrass.simulation.best import BestSoFar
from fedgrass.simulation.cluster import Cluster
from fedgrass.simulation.groups import Group
from fedgrass.simulation.helpers import VirtualHelpers
from fedgrass.simulation.machine import Machine
from fedgrass.simulation.model import in_folder, state_in_folder
from fedgrass.simulation.population import FLEET, Assignments, Plan, Population, device_of
from fedgrass.simulation.records import SimulatedRound
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.spent import Spent, step_of_tree
from fedgrass.simulation.store import SimulationState, Store
from fedgrass.simulation.updates import LateUpdates, VirtualUpdates
from fedgrass.simulation.worker import Folders
from fedgrass.update.registry import codec_named

_BEGINNING = datetime(2000, 1, 1, tzinfo=timezone.utc)  # of the simulated clock
# Rounds of small models take milliseconds; writing the state after each would take longer than they do.
_SAVE_SECONDS = 1.0


class Simulator:
    """One run: processes are up within its ``with`` block, and what was done is in the store when it is left.

    Parameters
    ----------
    bundle
        The model to start from.
    store
        Where rounds are kept; None keeps none.
    standing
        Where an earlier run came to, if this one resumes it.
    cluster
        Whose machines train; None: this one.
    group
        The devices that have this model, if others have others; its machine is the caller's to enter and leave.
    """

    def __init__(
        self,
        simulation: Simulation,
        bundle: Bundle,
        store: Store | None,
        *,
        workers: int | None,
        standing: SimulationState | None = None,
        cluster: Cluster | None = None,
        group: Group | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._simulation = simulation
        self._store = store
        self._clock = clock
        self._manifest = bundle.manifest
        # Each device would refuse it when it trains: said once, before anything starts.
        if simulation.fleet.strategy.device_fit.get("control") == "scaffold":
            require_linear(bundle.manifest.optimizer)
        if simulation.fleet.fit.local_epochs and bundle.manifest.shares_all:
            raise ConfigurationError(
                f"fit.local_epochs: model {bundle.manifest.name!r} has no parameters that devices keep for themselves; export "
                "it with --local"
            )
        self._spent = Spent(simulation)
        if beyond := self._spent.beyond(()):
            raise ConfigurationError(f"{beyond}: not one round fits; decide on a larger budget, or on more noise")
        self._group = group
        # The devices that judge a group's model are others in each round, so figures of earlier ones say nothing.
        self._best = BestSoFar(forgets=simulation.fleet.gate.forget_best or group is not None)
        self._strategy = simulation.fleet.made_strategy()
        if cluster is not None:
            self._require_spread(resumed=standing is not None)
        self._scratch = Path(tempfile.mkdtemp(prefix="fedgrass-simulation-"))
        try:
            kept = self._scratch if store is None else store.kept.resolve()
            self._folders = Folders(self._scratch, kept)
            machine = (
                Machine.of(simulation, bundle, self._scratch, workers, cluster) if group is None else group.machine
            )
            _require_end(simulation, machine.engine)
        except BaseException:
            shutil.rmtree(self._scratch)  # processes that have been started end when their pipes do
            raise
        self._pool, self._engine, self._judging = machine.pool, machine.engine, machine.judging
        self._population = machine.population if group is None else group.members
        self.standing = standing or SimulationState((), bundle.manifest.version, bundle.parameters(), {})
        self._saved_at = clock()
        self._judges = 0
        self._late = LateUpdates(kept)
        # Such rounds are aggregated here, in the leading process, from whole updates.
        self._together = self._strategy.needs_all or simulation.fleet.secure is not None
        self._helpers = self._virtual_helpers()
        # Where devices keep something in files from round to round, the state must not lag behind them.
        self._save_each = (
            group is not None
            or bool(self._strategy.staleness)
            or self._strategy.device_state is not None
            or bool(bundle.manifest.local_parameters)
            or simulation.fleet.personal.mode != "none"
            or not codec_named(simulation.fleet.update.codec).parameters.lossless
        )
        self._bases = {one.report.round: one.report.base.parameters_sha256 for one in self.standing.rounds}
        for one in self.standing.rounds:
            self._report_losses(one.report)
        self._base = self._publish(self.standing)
        self.evaluation = self._evaluate(self.standing.parameters)

    def _require_spread(self, *, resumed: bool) -> None:
        """Raise `ConfigurationError` for what other machines cannot do."""
        if self._strategy.needs_all or self._simulation.fleet.secure is not None:
            raise ConfigurationError(
                f"strategy {self._strategy.name!r}: needs all updates in one place; simulate on one machine, with --workers"
            )
        if resumed:
            raise ConfigurationError(
                "--ray: what devices keep is gone with the cluster's processes; resume with --workers"
            )

    def __enter__(self) -> Simulator:
        if self._group is None:
            self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._store is not None and self.standing.rounds:
                self._store.save(self.standing)
            if self._group is None:
                self._pool.__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._scratch)

    @property
    def process_ids(self) -> list[int]:
        """The processes that train."""
        return self._pool.process_ids

    def run(self, done: Callable[[SimulatedRound], None] = lambda _: None) -> None:
        """Simulate the rounds that are left; ``done`` is told of each."""
        while len(self.standing.rounds) < self._simulation.rounds and not self.ended:
            done(self.step())

    @property
    def ended(self) -> str:
        """Why the run is over before its rounds are; empty if it goes on."""
        fleet, rounds = self._simulation.fleet, self.standing.rounds
        if beyond := self._spent.beyond(rounds):
            return beyond
        if not fleet.until.ends or not rounds:
            return ""
        wanted = fleet.until.metric or fleet.gate.metric
        name, _ = watched(rounds[-1].evaluation, wanted)
        values = [watched(one.evaluation, wanted)[1] if one.went_on else None for one in rounds]
        return why_over(fleet.until, name, values, sum(one.seconds for one in rounds) / 3600)

    def step(self) -> SimulatedRound:
        """Simulate the next round."""
        simulated = self._round(len(self.standing.rounds) + 1)
        if self._store is not None and (self._save_each or self._clock() - self._saved_at > _SAVE_SECONDS):
            self._store.save(self.standing)
            self._saved_at = self._clock()
        return simulated

    @property
    def folders(self) -> Folders:
        """Where the model is from which the next round starts, and what devices keep."""
        return self._folders

    def judge_on(self, examples: Checked, devices: int) -> None:
        """Judge models from now on by these examples, which so many devices keep back, in place of those that no device has."""
        self._judging, self._judges = examples, devices
        self.evaluation = self._evaluate(self.standing.parameters)

    def announced(self, number: int) -> Announcement:
        """Return what devices are told of a round that starts from the present model."""
        return self._announcement(number, self._population.opened(number)[0], self._now())

    def _fleet(self, number: int) -> FleetSettings:
        """Return the fleet's settings as a round has them."""
        return self._simulation.fleet.at_round(number, 1)

    def _task(self, number: int, now: datetime) -> tuple[Announcement, Expected, Assignments]:
        manifest, staleness = self._base.manifest, self._strategy.staleness
        cohort, _ = self._population.opened(number)
        self._bases[number] = manifest.parameters_sha256
        if staleness:
            self._late.forget(number - staleness)
        expected = Expected(
            base_sha256=manifest.parameters_sha256,
            graph_sha256=manifest.graph_sha256,
            fleet=FLEET,
            round=number,
            cohort=cohort,
            checks=self._simulation.fleet.checks,
            earlier=self._earlier(number),
            plan=self._fleet(number).step_plan(manifest.batch_size),
        )
        return self._announcement(number, cohort, now), expected, self._population.duties(number, staleness)

    def _earlier(self, number: int) -> dict[int, EarlierRound]:
        """Return the rounds whose late updates are wanted; see `fedgrass.cloud.aggregator.late`."""
        rounds = range(number - 1, max(0, number - 1 - self._strategy.staleness), -1)
        bases = [self._bases[earlier] for earlier in rounds]
        return {
            earlier: EarlierRound(base, age, self._population.opened(earlier)[0])
            for earlier, base, age in zip(rounds, bases, staleness_of(self._bases[number], bases), strict=True)
        }

    def _round(self, number: int) -> SimulatedRound:
        cohort, plan = self._population.opened(number)
        fleet, base = self._fleet(number), self._base
        now = self._now()
        announced, expected, duties = self._task(number, now)
        self._pool.begin(announced, expected, duties, self._folders)
        # The next cohort is worked out while the devices train: with a million devices it takes a while. Not where it depends on
        # what they report.
        if number < self._simulation.rounds and not fleet.cohort.chooses_by_loss:
            self._population.opened(number + 1)  # while the devices train
        failures, updates = self._pool.end() if self._together else ({}, None)
        updates = updates or VirtualUpdates(self._scratch)
        own = partial(trained_difference, self._engine, base, self._judging, fleet.fit)
        result = aggregate(
            base,
            updates,
            updates.list(),
            with_own_update(self._strategy, own),
            expected,
            AggregationOptions(
                min_updates=fleet.min_updates,
                devices=self._simulation.devices if self._group is None else self._group.size,
                state=self.standing.server,
                # Noise by the round's salt: a simulation is to be repeatable, where a real round's seed is secret.
                noise=noise_of(fleet.privacy, *self._noise(number, cohort.salt)),
                noisy=fleet.privacy.mode != "none",
                share=self._pool if not self._together else None,
                masked=self._masked(announced),
                scratch=self._scratch,
            ),
        )
        updates.clear()
        if not self._together:
            failures, _ = self._pool.end()
        return self._conclude(number, plan, announced, result, failures, now)

    def _noise(self, number: int, salt: str) -> tuple[str, int]:
        """Return the seed of a round's noise, and which step of a tree of noise the round is; 0 if of none."""
        rounds = self._simulation.fleet.strategy.tree
        step = step_of_tree(rounds, self.standing.rounds) if rounds else 0
        # Each group's model has noise of its own.
        named = f"noise/{salt}" if self._group is None else f"noise/{salt}/{self._group.name}"
        named = f"{named}/{number - step + 1}" if step else named
        return hashlib.sha256(named.encode()).hexdigest(), step

    def _virtual_helpers(self) -> VirtualHelpers | None:
        simulation = self._simulation
        task = announced_secure(simulation.fleet, simulation.cohort)
        if task is None:
            return None
        return VirtualHelpers(task, FLEET, simulation.seed, self._scratch / "helpers")

    def _masked(self, announced: Announcement) -> Masked | None:
        if announced.secure is None or self._helpers is None:
            return None
        return Masked(announced.secure, context_of(announced), self._helpers)

    def _conclude(
        self,
        number: int,
        plan: Plan,
        announced: Announcement,
        result: Aggregation,
        failures: dict[str, str],
        now: datetime,
    ) -> SimulatedRound:
        report = ReportBuilder(FLEET, number, self._strategy.name, now, announced.base)
        report.aggregation = result
        report.evaluation_base = before = self.evaluation
        report.evaluated_by_devices = self._judges
        standing = self.standing
        version, parameters, server = standing.version, standing.parameters, standing.server
        outcome, reason, evaluation = self._judged(number, result)
        report.evaluation = evaluation
        # A held round changes nothing: neither the model nor the server optimizer's state.
        if outcome in ADOPTED and result.parameters is not None and evaluation is not None:
            version, parameters, server = next_version(version, number), result.parameters, result.state
            self.evaluation = evaluation
            self._base = self._publish(SimulationState((), version, parameters, server))
            report.model = self._base
        simulated = SimulatedRound(
            asked=len(plan.asked),
            dropped=plan.dropped,
            late=len(plan.late),
            failed=failures,
            seconds=plan.seconds,
            before=before,
            report=report.build(outcome, reason, now + timedelta(seconds=plan.seconds)),
        )
        self.standing = SimulationState((*standing.rounds, simulated), version, parameters, server)
        self._report_losses(simulated.report)
        return simulated

    def _report_losses(self, report: RoundReport) -> None:
        """Have the population know what devices reported, for the rounds that choose by it."""
        if self._simulation.fleet.cohort.chooses_by_loss and isinstance(self._population, Population):
            told = {device_of(entry.thing): entry.metrics[LOSS] for entry in report.updates if LOSS in entry.metrics}
            self._population.reported(report.round, told)

    def _judged(self, number: int, result: Aggregation) -> tuple[Outcome, str, Evaluation | None]:
        fleet = self._simulation.fleet
        if result.parameters is None:
            return *without_model(result, fleet.min_updates), None
        try:
            evaluation = self._evaluate(result.parameters)
        except EngineError as error:
            return "held", f"{error}: the base stays", None
        if self._manifest.local_parameters:  # what this host can evaluate is no device's model
            return *decided(fleet, number, partly_local(), None, None), evaluation
        verdict = judge_by(
            fleet.gate, self.evaluation, evaluation, self._best.of(self.evaluation, self.standing.rounds)
        )
        return *decided(fleet, number, verdict, self.evaluation, evaluation), evaluation

    def _evaluate(self, parameters: Parameters) -> Evaluation:
        self._engine.set_parameters(parameters)
        with own_code("evaluating"):
            metrics = self._engine.evaluate(self._judging)
        if not math.isfinite(metrics["loss"]):
            raise EngineError(f"the loss on the examples that were kept back is {metrics['loss']}")
        return Evaluation.of(metrics, len(self._judging))

    def _publish(self, standing: SimulationState) -> Bundle:
        base = in_folder(self._manifest, standing.parameters, self._scratch, version=standing.version)
        server = standing.server if self._strategy.device_state else {}
        self._state = state_in_folder(server, self._strategy.name, base)
        return base

    def _now(self) -> datetime:
        return self.standing.rounds[-1].report.finished_at if self.standing.rounds else _BEGINNING

    def _announcement(self, number: int, cohort: Cohort, now: datetime) -> Announcement:
        fleet = self._fleet(number)
        return Announcement(
            fleet=FLEET,
            round=number,
            opened_at=now,
            deadline=now + timedelta(seconds=fleet.deadline_seconds),
            base=Base.of(self._base.manifest, FLEET, self._state),
            cohort=cohort,
            fit=fleet.announced_fit,
            update=fleet.announced_update,
            personal=fleet.personal.announced,
            secure=announced_secure(fleet, self._simulation.cohort),
            upload=Upload(bucket=FLEET, prefix=update_prefix(FLEET, number)),
        )


def _require_end(simulation: Simulation, engine: Engine) -> None:
    """Raise `ConfigurationError` if devices are to end trainings early that nobody can interrupt."""
    if simulation.fleet.takes_partial_work and not getattr(engine, "takes_end", False):
        raise ConfigurationError(
            f"fit.partial_margin_seconds: engine {simulation.engine} trains in one call; use litert, keras, torch or sklearn, or "
            "set it to 0"
        )
