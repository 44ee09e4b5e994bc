"""The processes that train, seen from the one that leads them."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from fedgrass.cloud.aggregator.combination import Screened, merged
from fedgrass.cloud.aggregator.lanes import LANES, lane_of, lanes_of
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.errors import EngineError
from fedgrass.protocol.messages import Announcement
from fedgrass.simulation import worker
from fedgrass.simulation.cluster import Cluster, Process, Shipped, files_of
from fedgrass.simulation.population import Assignments, thing_name
from fedgrass.simulation.updates import VirtualUpdates
from fedgrass.simulation.worker import (
    Done,
    Failed,
    Folders,
    LaneTotal,
    LaneTotals,
    Request,
    Setup,
    Surveyed,
    Task,
)
from fedgrass.strategies.arithmetic.interfaces import Sums

# Seconds that a process may take to end by itself.
_PATIENCE = 10.0


Kind = TypeVar("Kind")


class WorkerPool:
    """A `fedgrass.cloud.aggregator.combination.Share` whose other instances are processes; leaving its ``with`` block ends them.

    Each process has some lanes in each round, such that all have about as many devices; the order in which lanes are added
    does not depend on it.
    """

    own: Sequence[int] = ()

    def __init__(self, setup: Setup, workers: int | None, cluster: Cluster | None = None) -> None:
        self._far = cluster is not None
        self._owners: dict[int, Connection] = {}
        self._arrived: dict[int, LaneTotal] = {}
        started = _beside(setup, workers or os.cpu_count() or 1) if cluster is None else cluster.start(setup, workers)
        self._pipes = [pipe for pipe, _ in started]
        self._processes = [process for _, process in started]

    def __enter__(self) -> WorkerPool:
        for pipe in self._pipes:
            _receive(pipe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if error is None:
                pipe.send(None)
            else:
                # After an error nobody reads the pipes: a worker that writes would wait for ever.
                process.terminate()
            pipe.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def process_ids(self) -> list[int]:
        """The processes; 0 for each on another machine."""
        return [process.pid or 0 for process in self._processes]

    def each(self, requests: Sequence[Request], kind: type[Kind]) -> list[Kind]:
        """Have each process do one of as many requests, and return their answers."""
        for pipe, request in zip(self._pipes, requests, strict=True):
            pipe.send(request)
        return [_expect(pipe, kind) for pipe in self._pipes]

    def begin(
        self,
        announcement: Announcement,
        expected: Expected,
        duties: Assignments,
        folders: Folders,
    ) -> None:
        """Have the worker processes do the devices' parts in a round.

        Parameters
        ----------
        announcement
            The round.
        expected
            What an update must say of itself.
        duties
            Which devices train, are late, or attack.
        folders
            Where the round's base is, and what devices keep.
        """
        lanes = {device: lane_of(thing_name(device)) for device in duties.devices()}
        count, files = len(self._pipes), files_of(folders) if self._far else {}
        # On another machine is what its devices keep: they stay there.
        shares = (
            [list(lanes_of(one, count)) for one in range(count)]
            if self._far
            else shared_out(Counter(lanes.values()), count)
        )
        self._owners = {}
        for pipe, own in zip(self._pipes, shares, strict=True):
            self._owners |= dict.fromkeys(own, pipe)
            mine = {device for device, lane in lanes.items() if lane in own}
            task = Task(announcement, expected, duties.of(mine), own, folders)
            pipe.send(Shipped(task, files) if self._far else task)

    def exchange(self, found: Screened) -> Screened:
        """Gather what the processes found in a first pass, and tell all of them."""
        for pipe in self._pipes:
            found = merged(found, _expect(pipe, Surveyed).found)
        for pipe in self._pipes:
            pipe.send(found)
        return found

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        """Not for a leading process, which has no lanes of its own."""
        raise NotImplementedError

    def add(self, lane: int, total: Sums) -> Screened:
        """Wait for a lane and add its sum."""
        while lane not in self._arrived:
            self._arrived |= {one.lane: one for one in _expect(self._owners[lane], LaneTotals).some}
        result = self._arrived.pop(lane)
        if result.total is not None:
            # Lane by lane, in the caller's order: floating-point sums depend on it, and must not on the number of
            # workers.
            np.add(total, result.total, out=total)
        found: Screened = result.found
        return found

    def end(self) -> tuple[dict[str, str], VirtualUpdates | None]:
        """Wait until every process is done; return why devices failed, and the updates if they were not added up."""
        failures: dict[str, str] = {}
        together: VirtualUpdates | None = None
        for pipe in self._pipes:
            done = _expect(pipe, Done)
            failures |= done.failures
            if done.updates is not None:
                together = done.updates.joined(together)
        return failures, together


def _beside(setup: Setup, workers: int) -> list[tuple[Connection, Process]]:
    """Start processes on this machine."""
    # A forked process would inherit threads' locks of NumPy and LiteRT in whatever state they were.
    context, started = multiprocessing.get_context("spawn"), []  # type: tuple[Any, list[tuple[Connection, Process]]]
    for _ in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=worker.main, args=(theirs, setup), daemon=True)
        process.start()
        # Else this process holds the other end open itself, and never sees that the worker died.
        theirs.close()
        started.append((ours, process))
    return started


def shared_out(devices_by_lane: Counter[int], workers: int) -> list[list[int]]:
    """Share lanes out among workers: the fullest first, each to the worker that has least to do.

    Parameters
    ----------
    devices_by_lane
        Devices that train, by lane.
    workers
        Number of workers.

    Returns
    -------
    list
        The lanes of each worker, in ascending order.

    Examples
    --------
    >>> shared_out(Counter({lane: 1 + lane for lane in range(16)}), 2)
    [[0, 3, 4, 7, 8, 11, 12, 15], [1, 2, 5, 6, 9, 10, 13, 14]]
    """
    loads, own = [0] * workers, [[] for _ in range(workers)]  # type: tuple[list[int], list[list[int]]]
    for lane in sorted(range(LANES), key=lambda lane: (-devices_by_lane[lane], lane)):
        least = loads.index(min(loads))
        loads[least] += devices_by_lane[lane]
        own[least].append(lane)
    return [sorted(some) for some in own]


def _expect(pipe: Connection, kind: type[Kind]) -> Kind:
    message = _receive(pipe)
    if not isinstance(message, kind):
        raise EngineError(f"a process of the simulation sent {type(message).__name__}, expected {kind.__name__}")
    return message


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        raise EngineError(
            "a process of the simulation has died; is there enough memory for --workers as many?"
        ) from error
    if isinstance(message, Failed):
        raise EngineError(f"a process of the simulation: {message.reason}")
    return message
