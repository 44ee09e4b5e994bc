"""Flower's grid over virtual devices: a ServerApp's messages go to processes here, and their replies come back."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fedgrass.engines.flower_node import Node, encode
from fedgrass.engines.flower_project import Project
from fedgrass.errors import EngineError
from fedgrass.simulation.flower import nodes
from fedgrass.strategies.arithmetic.flower_trees import identify


@dataclass
class Exchanged:
    """What went over a grid: messages by type, seconds in which devices worked, and what apps raised."""

    messages: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0


class VirtualGrid:
    """A `flwr.serverapp.Grid` for as long as its ``with`` block lasts.

    Parameters
    ----------
    project
        The app.
    devices
        How many there are; their ``partition-id`` counts from 0.
    workers
        Processes.
    said
        Told of the traceback of what an app raises.
    """

    def __init__(self, project: Project, *, devices: int, workers: int, said: Callable[[str], None]) -> None:
        # Messages are made in this process, and Flower wants to know by whom.
        identify()
        self.exchanged = Exchanged()
        self._said = said
        self._partitions = {Node(f"device-{number:07d}").number: number for number in range(devices)}
        self._states = dict.fromkeys(self._partitions, encode(importlib.import_module("flwr.app").RecordDict()))
        self._run = importlib.import_module("flwr.supercore.run").Run.create_empty(1)
        self._ids = itertools.count(1)
        self._sent: dict[str, tuple[int, Future[nodes.Answer]]] = {}
        self._workers = workers
        # Spawned: a fork would take over threads of an app that has imported PyTorch or TensorFlow.
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=nodes.prepare, initargs=(project,)
        )

    def __enter__(self) -> VirtualGrid:
        # An app's own timeouts are for devices that are there: libraries are loaded before.
        try:
            list(self._pool.map(_peak, range(4 * self._workers)))
        except BrokenProcessPool as error:
            raise self._broken() from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            found = dict(self._pool.map(_peak, range(4 * self._workers)))
            self.exchanged.peak_mb = sum(found.values())
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def run(self) -> Any:
        """Return what is known of the run."""
        return self._run

    def set_run(self, run: Any) -> None:
        """Take over what is known of the run."""
        self._run = run

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        """Return a message; see `flwr.serverapp.Grid.create_message`."""
        made = importlib.import_module("flwr.app").Message
        return made(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the devices' ids."""
        return list(self._partitions)

    def get_nodes(self) -> Iterable[Any]:
        """Return the devices."""
        info = importlib.import_module("flwr.proto.node_pb2").NodeInfo
        return (info(node_id=node) for node in self._partitions)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Send messages; returns an id of each, with which its reply is pulled."""
        ids = []
        for message in messages:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if node not in self._partitions:
                raise EngineError(f"server app: message to node {node}, which is none of the grid's")
            self.exchanged.messages[kind] = self.exchanged.messages.get(kind, 0) + 1
            identifier = str(next(self._ids))
            # The id has no setter: a SuperLink gives it, and here this grid takes its place.
            message.metadata.__dict__["_message_id"] = identifier
            content = nodes.bytes_of(message)
            try:
                asked = self._pool.submit(
                    nodes.answer, content, self._states[node], node, self._partitions[node], len(self._partitions)
                )
            except BrokenProcessPool as error:
                raise self._broken() from error
            self._sent[identifier] = node, asked
            ids.append(identifier)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the replies that are there, each once."""
        found = []
        for identifier in message_ids:
            node, asked = self._sent.get(identifier, (0, None))
            if asked is not None and asked.done():
                del self._sent[identifier]
                found.append(self._reply(node, asked))
        return found

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Send messages and wait for their replies, for at most so many seconds."""
        began = time.monotonic()
        ids = self.push_messages(messages)
        wait([self._sent[one][1] for one in ids], timeout)
        self.exchanged.seconds += time.monotonic() - began
        return self.pull_messages(ids)

    def _reply(self, node: int, asked: Future[nodes.Answer]) -> Any:
        try:
            found = asked.result()
        except BrokenProcessPool as error:
            raise self._broken() from error
        # The state lies here and goes along with each message, so any process can answer for any device.
        self._states[node] = found.state
        if found.trouble:
            self.exchanged.failed += 1
            self._said(f"device {self._partitions[node]}: the client app raised\n{found.trouble}")
        return nodes.message_of(found.reply)

    def _broken(self) -> EngineError:
        return EngineError(
            "client app: a process that runs it has died, or could not load it: what it printed is above. If it ran out of "
            "memory, use fewer --workers"
        )


def _peak(_number: int) -> tuple[str, float]:
    time.sleep(0.01)  # so that every process has some
    return nodes.peak_mb()
