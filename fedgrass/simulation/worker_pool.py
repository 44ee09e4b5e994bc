"""The processes that train, seen from the one that leads them."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Collection, Sequence
from functools import reduce
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from fedgrass.cloud.aggregator.combination import PartialSums, Screened, merged
from fedgrass.cloud.aggregator.lanes import LANES, lane_of
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.errors import EngineError
from fedgrass.protocol.messages import Announcement
from fedgrass.simulation import worker
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
_NOTHING = np.empty(0, np.float64)


Kind = TypeVar("Kind")


class WorkerPool:
    """A `fedgrass.cloud.aggregator.combination.Share` whose other instances are processes; leaving its ``with`` block ends them.

    Each process has some lanes in each round, such that all have about as many devices; the order in which lanes are added
    does not depend on it.
    """

    own: Sequence[int] = ()

    def __init__(self, setup: Setup, workers: int) -> None:
        # A forked process would inherit threads' locks of NumPy and LiteRT in whatever state they were.
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._pipes: list[Connection] = []
        self._owners: dict[int, Connection] = {}
        self._elsewhere: PartialSums | None = None
        self._arrived: dict[int, LaneTotal] = {}
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=worker.main, args=(theirs, setup), daemon=True)
            process.start()
            # Else this process holds the other end open itself, and never sees that the worker died.
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

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
        """The processes."""
        return [process.pid for process in self._processes if process.pid is not None]

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
        elsewhere: PartialSums | None = None,
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
        elsewhere
            Sums of lanes that are other hosts'; None if there is one host.
        """
        self._elsewhere = elsewhere
        # A host trains the devices of its own lanes only.
        here = range(LANES) if elsewhere is None else elsewhere.own
        lanes = {device: lane for device in duties.devices() if (lane := lane_of(thing_name(device))) in here}
        self._owners = {}
        for pipe, own in zip(self._pipes, shared_out(Counter(lanes.values()), here, len(self._pipes)), strict=True):
            self._owners |= dict.fromkeys(own, pipe)
            mine = {device for device, lane in lanes.items() if lane in own}
            pipe.send(Task(announcement, expected, duties.of(mine), own, folders))

    def exchange(self, found: Screened) -> Screened:
        """Gather what the processes found in a first pass, and tell all of them."""
        for pipe in self._pipes:
            found = merged(found, _expect(pipe, Surveyed).found)
        everything = found if self._elsewhere is None else self._elsewhere.exchange(found)
        for pipe in self._pipes:
            pipe.send(everything)
        return everything

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        """Not for a leading process, which has no lanes of its own."""
        raise NotImplementedError

    def add(self, lane: int, total: Sums) -> Screened:
        """Wait for a lane and add its sum."""
        if self._elsewhere is not None and lane not in self._elsewhere.own:
            return self._elsewhere.add(lane, total)
        while lane not in self._arrived:
            self._arrived |= {one.lane: one for one in _expect(self._owners[lane], LaneTotals).some}
        result = self._arrived.pop(lane)
        if result.total is not None:
            # Lane by lane, in the caller's order: floating-point sums depend on it, and must not on the number of
            # workers.
            np.add(total, result.total, out=total)
        found: Screened = result.found
        return found

    def relay(self, share: PartialSums) -> dict[str, str]:
        """Hand the processes' sums on to the leading host; return why devices failed."""
        messages = [_receive(pipe) for pipe in self._pipes]
        # All processes do the same, so the first one's message tells whether there is a first pass.
        if isinstance(messages[0], Surveyed):
            everything = share.exchange(reduce(merged, (message.found for message in messages)))
            for pipe in self._pipes:
                pipe.send(everything)
            messages = [_receive(pipe) for pipe in self._pipes]
        failures: dict[str, str] = {}
        for pipe, message in zip(self._pipes, messages, strict=True):
            while isinstance(message, LaneTotals):
                for one in message.some:
                    share.give(one.lane, _NOTHING if one.total is None else one.total, one.found)
                message = _receive(pipe)
            failures |= message.failures
        return failures

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


def shared_out(devices_by_lane: Counter[int], lanes: Collection[int], workers: int) -> list[list[int]]:
    """Share lanes out among workers: the fullest first, each to the worker that has least to do.

    Parameters
    ----------
    devices_by_lane
        Devices that train, by lane.
    lanes
        The lanes to share out.
    workers
        Number of workers.

    Returns
    -------
    list
        The lanes of each worker, in ascending order.

    Examples
    --------
    >>> shared_out(Counter({0: 5, 1: 3, 2: 2}), range(3), 2)
    [[0], [1, 2]]
    """
    loads, own = [0] * workers, [[] for _ in range(workers)]  # type: tuple[list[int], list[list[int]]]
    for lane in sorted(lanes, key=lambda lane: (-devices_by_lane[lane], lane)):
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
