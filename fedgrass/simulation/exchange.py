"""Several machines on one simulation: each trains and sums lanes of its own, as the instances of an aggregation job do.

What they tell each other lies in a folder that all see, or in a bucket: before each round its base, after it each lane's sum and
what was found of its updates. Every host works out the cohort by itself. A host that is started again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict

from fedgrass import tensors
from fedgrass.bundle import Parameters
from fedgrass.cloud.aggregator.config import Container
from fedgrass.cloud.aggregator.exchange import BucketPartialSums, ObjectStore
from fedgrass.cloud.aggregator.lanes import LANES, lanes_of
from fedgrass.errors import AggregationError, ConfigurationError, TransferError
from fedgrass.files import copy_atomically, write_atomically
from fedgrass.polling import poll
from fedgrass.simulation.settings import Simulation
from fedgrass.strategies.arithmetic.interfaces import State

# Of a round's base. A bound at all, so that a wrong key is an error and not the machine's end.
_MAX_BYTES = 64 << 30
# Seconds between two looks for another host's file.
_PAUSE = 0.02


class Opening(BaseModel):
    """What a host must know of a round before it can begin."""

    model_config = ConfigDict(frozen=True)

    version: str
    opened_at: datetime
    has_state: bool = False


class Failures(BaseModel):
    """Why devices of a host failed, by thing."""

    model_config = ConfigDict(frozen=True)

    failures: dict[str, str]


class Folder:
    """A `fedgrass.cloud.aggregator.exchange.Place` in a folder that all hosts see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def uri(self, key: str) -> str:
        """Return the key's path."""
        return str(self._folder / key)

    def read(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return what is there; None if it is not there yet."""
        path = self._folder / key
        try:
            if path.stat().st_size > max_bytes:
                raise TransferError(f"{path}: larger than {max_bytes} bytes; did a host of another version write it?")
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Write it whole."""
        write_atomically(self._folder / key, content)

    def write_file(self, key: str, path: Path) -> None:
        """Copy a file there, whole."""
        copy_atomically(path, self._folder / key)

    def open(self, key: str, size: int) -> BinaryIO:
        """Open what is there."""
        del size
        return (self._folder / key).open("rb", buffering=0)


@dataclass(frozen=True)
class Hosts:
    """The hosts of a simulation, seen from one of them; the first leads.

    Parameters
    ----------
    place, prefix
        Where they meet.
    patience
        Seconds to wait for another host.
    """

    index: int
    count: int
    place: ObjectStore
    prefix: str
    scratch: Path
    patience: float = 3600.0

    @property
    def lanes(self) -> Collection[int]:
        """The lanes of this host."""
        return lanes_of(self.index, self.count)

    def share(self, number: int) -> BucketPartialSums:
        """Return what a round's sums are exchanged by."""
        return BucketPartialSums(
            self.index, self.count, self.place, self._round(number), self.scratch, patience=self.patience, sleep=_short
        )

    def announce(self, number: int, opening: Opening, parameters: Parameters, server: State) -> None:
        """Tell the other hosts what a round begins with.

        Parameters
        ----------
        number
            The round.
        opening
            Its version and its simulated time; written last, so that whoever sees it finds the parameters.
        parameters
            Of the round's base.
        server
            What the strategy keeps of the fleet, for devices that train with it; the opening says whether there is any.
        """
        content = b"".join(tensors.encode(parameters))
        self.place.write(f"{self._round(number)}base.safetensors", content)
        if opening.has_state:
            self.place.write(f"{self._round(number)}server.safetensors", b"".join(tensors.encode(server)))
        # Last: hosts wait for this one, and then read the others without waiting.
        self.place.write(f"{self._round(number)}opening.json", opening.model_dump_json().encode())

    def opening(self, number: int) -> tuple[Opening, Parameters, State]:
        """Wait for what a round begins with."""
        opening = Opening.model_validate_json(self._await(f"{self._round(number)}opening.json"))
        return opening, self._tensors(number, "base"), self._tensors(number, "server") if opening.has_state else {}

    def _tensors(self, number: int, what: str) -> Parameters:
        path = self.scratch / what
        path.write_bytes(self._await(f"{self._round(number)}{what}.safetensors"))
        return tensors.load(path)[0]

    def tell_failures(self, number: int, failures: dict[str, str]) -> None:
        """Report the devices that could not train."""
        self.place.write(self._failures(number, self.index), Failures(failures=failures).model_dump_json().encode())

    def all_failures(self, number: int) -> dict[str, str]:
        """Collect the other hosts' reports of theirs."""
        found: dict[str, str] = {}
        for index in range(1, self.count):
            found |= Failures.model_validate_json(self._await(self._failures(number, index))).failures
        return found

    def _round(self, number: int) -> str:
        return f"{self.prefix}{number:06d}/"

    def _failures(self, number: int, index: int) -> str:
        return f"{self._round(number)}failures-{index:03d}.json"

    def _await(self, key: str) -> bytes:
        deadline = time.monotonic() + self.patience
        content = poll(
            lambda: self.place.read(key, max_bytes=_MAX_BYTES),
            lambda found: found is not None,
            until=lambda: deadline,
            pause=_PAUSE,
        )
        if content is None:
            raise AggregationError(
                f"{self.place.uri(key)}: another host has not written it in time; start all of them with the same options"
            )
        return content


def hosts_of(index: int, count: int, exchange: str, simulation: Simulation, scratch: Path) -> Hosts | None:
    """Return the hosts of a simulation, seen from one of them; None if there is only one.

    Parameters
    ----------
    exchange
        A folder that all hosts see, or ``s3://bucket/prefix``.

    Raises
    ------
    ConfigurationError
        If there is no such place, or the strategy needs all updates in one.
    """
    if count == 1:
        return None
    if simulation.fleet.strategy.made().needs_all:
        raise ConfigurationError(
            f"strategy {simulation.fleet.strategy.name!r}: needs all updates in one place; simulate on one host, with --workers"
        )
    if not exchange:
        raise ConfigurationError("--host: the hosts meet at --exchange, a folder that all see or s3://bucket/prefix")
    # By the whole simulation, so that a host with other options waits in vain and does not mix in. Rounds may be
    # extended.
    identity = hashlib.sha256(simulation.model_dump_json(exclude={"rounds"}).encode()).hexdigest()[:16]
    where = urlparse(exchange)
    if where.scheme != "s3":
        return Hosts(index, count, Folder(Path(exchange)), f"{identity}/", scratch)
    import boto3

    from fedgrass.cloud.aggregator.s3 import Bucket

    prefix = "/".join(part for part in (where.path.strip("/"), identity) if part)
    return Hosts(index, count, Bucket(boto3.client("s3"), where.netloc), f"{prefix}/", scratch)


def position(host: str) -> tuple[int, int]:
    """Return which host this is, from 0, and how many there are.

    Parameters
    ----------
    host
        ``INDEX/COUNT``, ``sagemaker`` to ask the Processing job that this runs in, or nothing for the only one.

    Raises
    ------
    ConfigurationError
        If it is none of these.
    """
    if not host:
        return 0, 1
    if host == "sagemaker":
        return Container.of(os.environ).instance()
    try:
        index, count = map(int, host.split("/"))
    except ValueError:
        raise ConfigurationError(f"--host {host}: expected INDEX/COUNT, such as 0/2, or sagemaker") from None
    if not 0 <= index < count <= LANES:
        raise ConfigurationError(f"--host {host}: expected an index from 0 to COUNT - 1, of at most {LANES} hosts")
    return index, count


def _short(_seconds: float) -> None:
    time.sleep(_PAUSE)
