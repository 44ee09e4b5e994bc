"""A process that trains virtual devices, and adds their updates up as one instance of the aggregation job would.

An update is read, checked and added where it was made; what goes to the leading process is a sum for each lane. A strategy that
must see all updates at once gets them as they are.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgrass import logs, tensors
from fedgrass.bundle import PARAMETERS, Bundle, Manifest
from fedgrass.cloud.aggregator.aggregate import contribute
from fedgrass.cloud.aggregator.combination import Screened
from fedgrass.cloud.aggregator.privacy import noise_of
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.control import SERVER_STATE
from fedgrass.engines.base import Engine
from fedgrass.engines.registry import open_engine
from fedgrass.errors import FedgrassError
from fedgrass.fitting import Fitted
from fedgrass.own_code import as_itself
from fedgrass.personal import shared_of
from fedgrass.protocol.messages import Announcement
from fedgrass.simulation.attacks import Doubles, difference
from fedgrass.simulation.examples import Examples, mapped
from fedgrass.simulation.model import rebased
from fedgrass.simulation.plain import PlainDevices
from fedgrass.simulation.population import Assignments, Population, thing_name
from fedgrass.simulation.settings import Attack, Simulation
from fedgrass.simulation.updates import Content, LateUpdates, VirtualUpdates
from fedgrass.simulation.virtual_device import Assignment, VirtualDevices
from fedgrass.strategies.arithmetic.interfaces import Sums

_MESSAGE_BYTES = 1 << 20  # of lanes' sums that wait for others
_TOGETHER_BYTES = 16 << 20  # of parameters that are trained before they are encoded


@dataclass(frozen=True)
class Setup:
    """What every process of a simulation is told when it starts; the examples are in the scratch folder."""

    simulation: Simulation
    bundle: Path
    scratch: Path


@dataclass(frozen=True)
class Folders:
    """Where a model's rounds are: its parameters in ``base``, anew in each round; ``kept`` outlives rounds, and an interruption.

    The latter is for residuals, for what devices keep, and for updates that come late.
    """

    base: Path
    kept: Path


@dataclass(frozen=True)
class Task:
    """A process's part of a round."""

    announcement: Announcement
    expected: Expected
    duties: Assignments
    lanes: Sequence[int]
    folders: Folders


class Request(Protocol):
    """Something else that a process does, and answers."""

    def answer(self, bench: Bench) -> object:
        """Do it."""
        ...


@dataclass
class Bench:
    """What a process works with: one engine, kept warm, and the examples."""

    engine: Engine
    manifest: Manifest
    examples: Examples
    simulation: Simulation
    _devices: dict[Path, VirtualDevices] = field(default_factory=dict)

    def devices(self, kept: Path) -> VirtualDevices:
        """Return the virtual devices that keep what they keep in this folder."""
        if kept not in self._devices:
            seed, count = self.simulation.seed, self.simulation.devices
            self._devices[kept] = VirtualDevices(self.engine, self.manifest, kept, seed=seed, devices=count)
        return self._devices[kept]


@dataclass(frozen=True)
class Surveyed:
    """What a first pass over the updates found: asks for what all processes found."""

    found: Screened


@dataclass(frozen=True)
class LaneTotal:
    """A lane's sum; ``total`` is None if it has no good update."""

    lane: int
    total: Sums | None
    found: Screened


@dataclass(frozen=True)
class LaneTotals:
    """The sums of some lanes, in order."""

    some: Sequence[LaneTotal]


@dataclass(frozen=True)
class Done:
    """The end of a process's part. ``failures`` are by thing; ``updates`` are there if they were not added up."""

    failures: dict[str, str]
    updates: VirtualUpdates | None


@dataclass(frozen=True)
class Failed:
    """The process cannot go on."""

    reason: str


def main(connection: Connection, setup: Setup) -> None:
    """Do what comes through the connection, until None does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the leading one decides
    # LiteRT greets on stderr; what the log says goes where it went.
    logs.words_to(os.fdopen(os.dup(2), "w"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        worker = Worker(connection, setup)
        # What is there now stays: collecting garbage need not look at it again.
        gc.freeze()
        # Ready: the pool waits for this before the first round.
        connection.send(None)
        while (task := connection.recv()) is not None:
            if isinstance(task, Task):
                worker.run(task)
            else:
                connection.send(task.answer(worker.bench))
    except FedgrassError as error:
        connection.send(Failed(f"{error.code}: {error}"))
    except (EOFError, BrokenPipeError):
        return  # the leading process is gone
    except MemoryError:
        connection.send(Failed("there is too little memory; give --workers fewer"))
    except Exception as error:
        connection.send(Failed(as_itself(error)))
        raise


class Worker:
    """A process's part in rounds."""

    def __init__(self, connection: Connection, setup: Setup) -> None:
        self._connection = connection
        self._simulation = setup.simulation
        bundle = Bundle.open(setup.bundle)
        engine = open_engine(setup.simulation.engine, bundle, builder=setup.simulation.builder)
        self._manifest = bundle.manifest
        self._examples = mapped(setup.simulation, bundle.manifest, setup.scratch)
        self.bench = Bench(engine, bundle.manifest, self._examples, setup.simulation)
        self._population = Population(setup.simulation)
        self._strategy = setup.simulation.fleet.made_strategy()
        self._together = self._strategy.needs_all or setup.simulation.fleet.secure is not None

    def run(self, task: Task) -> None:
        """Train the devices, and hand over what came of it."""
        folder = task.folders.base
        base = Bundle(folder, rebased(self._manifest, task.expected.base_sha256))
        updates, late = VirtualUpdates(folder), LateUpdates(task.folders.kept)
        failures = self._train(base, task, updates, late)
        late.deliver(task.duties.arrived, updates)
        if self._together:
            self._connection.send(Done(failures, updates))
            return
        contribute(
            base,
            updates,
            updates.list(),
            self._strategy,
            task.expected,
            _Pipe(self._connection, task.lanes),
            # Only clipping happens here; the leading process adds the noise, so this seed is never used.
            noise=noise_of(self._simulation.fleet.privacy, "00"),
        )
        updates.clear()
        self._connection.send(Done(failures, None))

    def _train(self, base: Bundle, task: Task, updates: VirtualUpdates, waiting: LateUpdates) -> dict[str, str]:
        """Train some devices, then encode their updates: LiteRT's wide instructions slow many processors down for a while."""
        parameters, _ = tensors.load(base.folder / PARAMETERS)
        server = base.folder / SERVER_STATE if task.announcement.base.state is not None else None
        given = Assignment(parameters, base.manifest, task.announcement, server)
        failures: dict[str, str] = {}
        virtual = self.bench.devices(task.folders.kept)
        together = max(1, _TOGETHER_BYTES // sum(value.nbytes for value in parameters.values()))
        honest = self._honest(given, task)
        late, number = set(task.duties.late), task.announcement.round

        def put(device: int, content: Content) -> None:
            (waiting.keep if device in late else updates.put)(number, thing_name(device), content)

        # Not worked out here: to draw the lots of a million devices takes each process as long as to train a thousand.
        parts = task.duties.parts
        duties = [*task.duties.answers, *task.duties.late]
        whole = self._without_plain([device for device in duties if device not in parts], given, put)
        devices = [*(device for device in duties if device in parts), *whole]
        for start in range(0, len(devices), together):
            trained: dict[int, Fitted] = {}
            for device in devices[start : start + together]:
                with _noted(failures, thing_name(device)):
                    trained[device] = virtual.train(
                        device,
                        self._examples.of(device),
                        given,
                        self._attack(device),
                        self._examples.held_back(device),
                        parts.get(device, 1.0),
                    )
            for device, fitted in trained.items():
                with _noted(failures, thing_name(device)):
                    put(device, virtual.encode(fitted, given, self._attack(device), honest))
        return failures

    def _without_plain(
        self, devices: Sequence[int], given: Assignment, put: Callable[[int, Content], None]
    ) -> Sequence[int]:
        """Train those that can be trained together, and return the others."""
        plain = PlainDevices.of(self.bench.engine, self._examples, given)
        if plain is None:
            return devices
        done = set()
        for device, update in plain.train(device for device in devices if self._attack(device) is None):
            put(device, update)
            done.add(device)
        return [device for device in devices if device not in done]

    def _honest(self, given: Assignment, task: Task) -> Doubles:
        """Return what the round's honest devices have learnt [n, size], if there are attackers here who know it."""
        attack, attackers = self._population.attack, self._population.attackers
        # Costly: each process trains all honest devices of the round, so only for an attacker of its own.
        if attack is None or not attack.does.omniscient or not attackers & {*task.duties.answers, *task.duties.late}:
            return np.empty((0, 0))
        found, base = [], dict(shared_of(given.manifest, given.base))
        virtual = self.bench.devices(task.folders.kept)
        for device in self._population.opened(task.announcement.round)[1].answers:
            if device not in attackers:
                with _noted({}, thing_name(device)):
                    fitted = virtual.train(device, self._examples.of(device), given, None)
                    found.append(difference(base, fitted.parameters))
        # With nobody honest an attacker sees one update of zeros.
        return np.stack(found) if found else np.zeros((1, sum(value.size for value in base.values())))

    def _attack(self, device: int) -> Attack | None:
        return self._population.attack if device in self._population.attackers else None


@contextmanager
def _noted(failures: dict[str, str], thing: str) -> Iterator[None]:
    try:
        yield
    except FedgrassError as error:
        failures[thing] = f"{error.code}: {error}"


class _Pipe:
    """A `fedgrass.cloud.aggregator.combination.Share` that leads to the leading process."""

    def __init__(self, connection: Connection, lanes: Sequence[int]) -> None:
        self.own = lanes
        self._connection = connection
        self._held: list[LaneTotal] = []

    def exchange(self, found: Screened) -> Screened:
        self._connection.send(Surveyed(found))
        everything: Screened = self._connection.recv()
        return everything

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        self._held.append(LaneTotal(lane, total if found.good else None, found))
        # A message takes as long as some hundred thousand bytes; large sums go at once, and take no memory here.
        if lane == self.own[-1] or len(self._held) * total.nbytes > _MESSAGE_BYTES:
            self._connection.send(LaneTotals(self._held))
            self._held = []

    def add(self, lane: int, total: Sums) -> Screened:
        raise NotImplementedError("the leading process adds the lanes up")
