"""Several machines on one simulation: Ray starts the processes that train, and each connects to the one that leads.

What goes between them is what goes between processes of one machine, over a connection that only who has the run's key can make;
and what those find on their disk: the bundle and the examples once, each round's base. Nothing is looked for again and again.
"""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Protocol

from fedgrass.cloud.aggregator.config import Container
from fedgrass.cloud.aggregator.lanes import LANES
from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.polling import poll
from fedgrass.simulation import worker
from fedgrass.simulation.worker import Folders, Setup, Task

_PATIENCE = 300.0  # seconds for the cluster's machines, and for a process to begin on one
_PORT = 6379  # of Ray's head, as `ray start` has it
_BUNDLE, _EXAMPLES = "bundle", "examples"


class Process(Protocol):
    """A process that trains, as `multiprocessing.Process` has it; ``pid`` is None on another machine."""

    @property
    def pid(self) -> int | None:
        """Its number on this machine."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""

    def is_alive(self) -> bool:
        """Say whether it is there."""


class Cluster(Protocol):
    """Starts processes on other machines."""

    def start(self, setup: Setup, workers: int | None) -> list[tuple[Connection, Process]]:
        """Start them, so many or one for each processor, and return them with what leads to each."""
        ...


@dataclass(frozen=True)
class Shipped:
    """A round's task with the content of the files that it speaks of."""

    task: Task
    files: Mapping[str, bytes]


def files_of(folders: Folders) -> dict[str, bytes]:
    """Return a round's base, as it is shipped."""
    return {path.name: path.read_bytes() for path in folders.base.glob("*.safetensors")}


def content_of(setup: Setup) -> dict[str, bytes]:
    """Return the files that every process needs: the bundle's, and the examples'."""
    found = {f"{_BUNDLE}/{p.relative_to(setup.bundle)}": p for p in setup.bundle.rglob("*") if p.is_file()}
    found |= {f"{_EXAMPLES}/{p.name}": p for p in setup.scratch.glob("*.npy")}
    return {name: path.read_bytes() for name, path in found.items()}


def serve(address: tuple[str, int], key: bytes, setup: Setup, files: Mapping[str, bytes]) -> None:
    """Be one of the processes: connect, and do what comes, as `fedgrass.simulation.worker.main`.

    Parameters
    ----------
    address, key
        Where the leading process listens, and what it knows its own by.
    setup
        As of a process beside it; its folders are replaced by one of this machine.
    files
        As of `content_of`.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedgrass-simulation-"))
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / _EXAMPLES).mkdir(exist_ok=True)
        local = replace(setup, bundle=folder / _BUNDLE, scratch=folder / _EXAMPLES)
        worker.main(_Unpacking(Client(address, authkey=key), folder), local)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Unpacking:
    """A connection that puts the files of what comes onto this machine's disk."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._folders = Folders(base=folder / "base", kept=folder / "kept")
        for path in (self._folders.base, self._folders.kept):
            path.mkdir()

    def send(self, message: object) -> None:
        self._connection.send(message)

    def recv(self) -> object:
        message = self._connection.recv()
        if not isinstance(message, Shipped):
            return message
        for name, content in message.files.items():
            (self._folders.base / name).write_bytes(content)
        return replace(message.task, folders=self._folders)


class Gate:
    """Where processes of other machines connect to.

    Parameters
    ----------
    host
        This machine's address, as the others reach it.
    """

    def __init__(self, host: str) -> None:
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), backlog=LANES, authkey=self.key)
        self.address: tuple[str, int] = self._listener.address

    def admit(self, processes: Sequence[Process]) -> list[Connection]:
        """Wait until as many have connected; raises `EngineError` if one has ended, or none comes."""
        arrived: queue.Queue[Connection] = queue.Queue()
        threading.Thread(target=self._accept, args=(arrived, len(processes)), daemon=True).start()
        deadline = time.monotonic() + _PATIENCE
        try:
            poll(
                arrived.qsize,
                lambda found: found == len(processes) or not all(process.is_alive() for process in processes),
                until=lambda: deadline,
                pause=0.1,
            )
            if arrived.qsize() < len(processes):
                raise EngineError(
                    f"{arrived.qsize()} of {len(processes)} processes have begun on the cluster's machines: is fedgrass of this "
                    f"version installed on each, and can they reach {self.address[0]}?"
                )
        finally:
            self._listener.close()
        return [arrived.get() for _ in processes]

    def _accept(self, arrived: queue.Queue[Connection], count: int) -> None:
        while count:
            # Who does not know the key is none of ours; after `close` nobody is waited for.
            with suppress(AuthenticationError, EOFError):
                try:
                    arrived.put(self._listener.accept())
                except OSError:
                    return
                count -= 1


class RayCluster:
    """Processes on the machines of a Ray cluster.

    Parameters
    ----------
    address
        As ``ray.init`` takes it: ``auto`` for the cluster that this machine belongs to, ``local`` for one of this machine alone.

    Raises
    ------
    ConfigurationError
        If Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigurationError("--ray: Ray is not installed; pip install 'fedgrass[ray]'") from error
        self._ray: Any = ray
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"--ray {address}: no such cluster ({error}); ray start makes one") from error

    def machines(self) -> int:
        """Return how many machines are there."""
        return sum(bool(node["Alive"]) for node in self._ray.nodes())

    def start(self, setup: Setup, workers: int | None) -> list[tuple[Connection, Process]]:
        """Start processes, one for each of the cluster's processors if not told otherwise; at most 16 have something to do."""
        ray = self._ray
        count = min(LANES, workers or int(ray.cluster_resources().get("CPU", 1)))
        gate, files = Gate(ray.util.get_node_ip_address()), ray.put(content_of(setup))
        remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(serve)
        processes = [_RayProcess(ray, remote.remote(gate.address, gate.key, setup, files)) for _ in range(count)]
        try:
            return list(zip(gate.admit(processes), processes, strict=True))
        except BaseException:
            for process in processes:
                process.kill()
            raise


class _RayProcess:
    """A task of Ray, as a process."""

    pid = None

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task

    def terminate(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)

    def join(self, timeout: float | None = None) -> None:
        self._ray.wait([self._task], timeout=timeout)

    def is_alive(self) -> bool:
        return not self._ray.wait([self._task], timeout=0)[0]


def cluster_of(address: str) -> Cluster | None:
    """Return the cluster that an address names; None for an empty one.

    Parameters
    ----------
    address
        As of `RayCluster`; ``sagemaker`` makes one of the instances of the Processing job that this runs in.

    Returns
    -------
    Cluster or None
        Of the job, on the instance that leads. The others belong to the cluster until the leading one ends, and end then too
        (`SystemExit`).
    """
    if address == "sagemaker":
        return _of_job(*Container.of(os.environ).hosts())
    return RayCluster(address) if address else None


def _of_job(own: int, hosts: Sequence[str]) -> Cluster | None:
    if own:
        # Ends when the head does, which is the job's end.
        _ray(f"--address={hosts[0]}:{_PORT}", "--block")
        raise SystemExit(0)
    if _ray("--head", f"--port={_PORT}", "--include-dashboard=false"):
        raise EngineError("--ray sagemaker: `ray start --head` failed; its words are above")
    cluster, deadline = RayCluster("auto"), time.monotonic() + _PATIENCE
    found = poll(cluster.machines, lambda count: count >= len(hosts), until=lambda: deadline)
    if found < len(hosts):
        raise EngineError(
            f"{found} of the job's {len(hosts)} instances have joined the Ray cluster of {hosts[0]}:{_PORT}"
        )
    return cluster


def _ray(*arguments: str) -> int:
    argv = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
    return subprocess.run(argv, check=False).returncode  # noqa: S603 - this interpreter, no shell
