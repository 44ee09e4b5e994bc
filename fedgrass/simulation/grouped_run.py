"""Simulations in which groups of devices have models of their own: by a tag of their data, or by their own choice (IFCA).

Each group's model has the rounds of any simulation (`fedgrass.simulation.simulator`), in a folder of its own; in each round a
device takes part in one of them. What is decided here is who takes part in which.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import Bundle, Parameters
from fedgrass.errors import ConfigurationError
from fedgrass.simulation import group_report, report
from fedgrass.simulation.choosing import figures, first_models, judged
from fedgrass.simulation.group_report import GroupsReport, Standing
from fedgrass.simulation.groups import Choice, Choices, Group, Members, names_of
from fedgrass.simulation.machine import Machine
from fedgrass.simulation.records import SimulatedRound, Timing
from fedgrass.simulation.run import processor_seconds, start_of, timing_of
from fedgrass.simulation.settings import Grouping, Simulation
from fedgrass.simulation.simulator import Simulator
from fedgrass.simulation.store import GROUPS, SimulationState, Store

MOST_JUDGED = 10_000
"""Devices that say at the end which model is theirs, and how good it is: the first ones."""


def simulate_groups(
    output: Path,
    *,
    bundle: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    done: Callable[[dict[str, SimulatedRound]], None] = lambda _: None,
    **options: Any,
) -> GroupsReport:
    """Simulate federated rounds in which groups of devices have models of their own, and write a report of all and of each.

    Parameters
    ----------
    output
        The folder; made if absent. Each group's rounds, report and model are in a folder of its own below ``groups``.
    bundle
        The model to start from; the digits example if not given.
    resume
        Whether to go on with what the folder holds.
    workers
        Processes; as many as there are processors if not given. The result does not depend on it.
    done
        Told of each round, by group.
    options
        Fields of `fedgrass.simulation.settings.Simulation`; ``groups`` is one of them: ``tag:NAME`` or ``clusters:K``.

    Returns
    -------
    GroupsReport
        Of all rounds.

    Raises
    ------
    ConfigurationError
        If an option is wrong, the folder holds another simulation, or another process is at work there.
    DataError
        If the data are missing or do not fit.
    KeyboardInterrupt
        If it was interrupted: the rounds that are whole are saved, and go on with ``resume``.

    Examples
    --------
    >>> import fedgrass
    >>> report = fedgrass.simulate_groups(
    ...     Path("grouped"), groups="clusters:2", devices=6, cohort=6, rounds=1, workers=1, fleet={})
    >>> sorted(report.groups), sum(one.devices for one in report.groups.values())
    (['cluster-1', 'cluster-2'], 6)
    """
    opened, simulation = start_of(bundle, options)
    if not simulation.groups:
        raise ConfigurationError("groups: expected tag:NAME or clusters:K; without groups it is simulate()")
    top, choices = Store(output), Choices(output)
    if resume:
        top.require_same(simulation)  # before its lock: a folder that holds nothing stays as it is
    with top.alone():
        if resume:
            top.reopen(simulation)
            choices.resume()
        else:
            top.begin(simulation)
            choices.begin()
        workers, began = workers or os.cpu_count() or 1, time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix="fedgrass-groups-"))
        try:
            machine = Machine.of(simulation, opened, scratch, workers)
            with machine.pool, ExitStack() as stack:
                run = _Run(simulation, opened, machine, output, scratch, choices)
                for simulator in run.begin(resume=resume):
                    stack.enter_context(simulator)
                started, ready_at, before = time.monotonic(), time.time(), run.rounds
                processes = machine.pool.process_ids
                spent = processor_seconds(processes)
                run.run(done)
                seconds, spent = time.monotonic() - started, processor_seconds(processes) - spent
                return run.report(
                    timing_of(ready_at, started - began, seconds, spent, run.all_rounds(before), processes)
                )
        finally:
            shutil.rmtree(scratch)


@dataclass
class _Run:
    """The groups' simulators, and who takes part in which."""

    simulation: Simulation
    bundle: Bundle
    machine: Machine
    output: Path
    scratch: Path
    choices: Choices

    def __post_init__(self) -> None:
        self._grouping = Grouping.parse(self.simulation.groups)
        self._names = names_of(self.simulation.data_tag, self.machine.examples.tags, self._grouping.clusters)
        folders = {name.translate(_UNSAFE) for name in self._names}
        if len(folders) < len(self._names):
            raise ConfigurationError(
                f"groups {self.simulation.groups}: two values would have one folder; spell them apart"
            )
        self._simulators: dict[str, Simulator] = {}
        self._members: list[Members] = []

    def begin(self, *, resume: bool) -> list[Simulator]:
        """Open each group's folder, and make its simulator; those that begin start from the bundle's model or a seed."""
        stores = {name: Store(self.folder(name)) for name in self._names}
        standings: dict[str, SimulationState | None] = dict.fromkeys(stores)
        for name, store in stores.items():
            if resume and store.exists:
                standings[name] = store.resume(self.simulation)
            else:
                store.begin(self.simulation)
        if self._grouping.clusters > 1 and None in standings.values():
            first = self._first_models()
            for name, parameters in zip(self._names, first, strict=True):
                start = SimulationState((), self.bundle.manifest.version, parameters, {})
                standings[name] = standings[name] or start
        for at, (name, store) in enumerate(stores.items()):
            members = Members(self.machine.population, at)
            for choice in self.choices.rounds.values():
                members.tell(choice)
            self._members.append(members)
            self._simulators[name] = self._simulator(name, store, members, standings[name])
        return list(self._simulators.values())

    def _simulator(
        self, name: str, store: Store | None, members: Members, standing: SimulationState | None
    ) -> Simulator:
        devices, count = self.simulation.devices, len(self._names)
        size = devices if self._grouping.clusters else len(range(self._names.index(name), devices, count))
        group = Group(name, members, size, self.machine)
        return Simulator(self.simulation, self.bundle, store, workers=0, standing=standing, group=group)

    def _first_models(self) -> list[Parameters]:
        """Return what the clusters start from; worked out again where a run is resumed before its first round."""
        members = Members(self.machine.population, 0)
        answers = list(self.machine.population.opened(1)[1].answers)
        if not answers:
            raise ConfigurationError(
                "clusters: nobody answers in the first round; lower --dropout, or ask more devices"
            )
        # Its announcement only: the folder is none of a group's.
        with self._simulator(self._names[0], None, members, None) as simulator:
            return first_models(
                self.machine.pool,
                simulator.announced(1),
                self.bundle,
                answers,
                count=self._grouping.clusters,
                seed=self.simulation.seed,
                scratch=self.scratch / "first",
            )

    @property
    def rounds(self) -> int:
        """Rounds that all groups have."""
        return min(len(one.standing.rounds) for one in self._simulators.values())

    def all_rounds(self, after: int) -> list[SimulatedRound]:
        """Return every group's rounds after the first so many."""
        return [one for simulator in self._simulators.values() for one in simulator.standing.rounds[after:]]

    def run(self, done: Callable[[dict[str, SimulatedRound]], None]) -> None:
        """Simulate the rounds that are left."""
        while (number := self.rounds + 1) <= self.simulation.rounds:
            choice = self.choices.rounds.get(number) or self._choose(number)
            simulated = {}
            for at, (name, simulator) in enumerate(self._simulators.items()):
                # After an interruption some groups have this round already.
                if len(simulator.standing.rounds) < number:
                    self._judge(simulator, choice.of(at))
                    simulated[name] = simulator.step()
            done(simulated)

    def _choose(self, number: int) -> Choice:
        devices = self.machine.population.opened(number)[1].asked
        losses, chosen = self._chosen(devices)
        # On disk before anybody trains: the models that it was chosen from are gone afterwards.
        choice = Choice(round=number, devices=devices, groups=tuple(chosen), losses=tuple(losses))
        self.choices.add(choice)
        for members in self._members:
            members.tell(choice)
        return choice

    def _chosen(self, devices: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return each device's loss under its group's model, as it is now, and its group; of equal ones the first."""
        if not self._grouping.clusters:
            return [], [device % len(self._names) for device in devices]
        found = judged(self.machine.pool, [one.folders for one in self._simulators.values()], devices)
        chosen = found.argmin(axis=1)
        least = np.where(np.isfinite(found), found, 0.0)[np.arange(len(devices)), chosen]
        return [float(f"{loss:.6g}") for loss in least], [int(one) for one in chosen]

    def _judge(self, simulator: Simulator, members: Sequence[int]) -> None:
        """Have a group's models be judged on what its devices of the round keep back, as far as they keep any."""
        examples = self.machine.examples.held_back_of(members)
        if len(examples):
            simulator.judge_on(examples, len(members))

    def folder(self, name: str) -> Path:
        """Return a group's folder."""
        return self.output / GROUPS / name.translate(_UNSAFE)

    def report(self, timing: Timing) -> GroupsReport:
        """Write each group's report and model, and the report of all."""
        devices = range(min(self.simulation.devices, MOST_JUDGED))
        chosen = self._chosen(devices)[1]
        found = []
        for at, (name, simulator) in enumerate(self._simulators.items()):
            standing, folder = simulator.standing, self.folder(name)
            told = report.summarise(self.simulation, self.bundle.manifest, standing.rounds, timing)
            report.write_model(self.bundle, standing.parameters, standing.version, told.final, folder / "model")
            report.write(told, standing.rounds, folder)
            mine = [device for device, group in zip(devices, chosen, strict=True) if group == at]
            values = figures(self.machine.pool, simulator.folders, mine)
            found.append(Standing(name, folder.relative_to(self.output), told, standing.rounds, mine, values))
        return group_report.write(
            self.simulation, self.bundle.manifest, found, self.choices, self.machine.examples, self.output
        )


_UNSAFE = {ord(one): "_" for one in map(chr, range(128)) if not (one.isalnum() or one in "=,+-._")}
