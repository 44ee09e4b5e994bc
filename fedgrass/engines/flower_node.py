"""Whom a Flower client app runs as: its ``context``, whose ``state`` outlives rounds and restarts.

State is written with Flower's own serialisation of records (protobuf and NumPy's plain arrays): nothing is pickled, and what is
read is bounded first. Each round's state has its own file, so that a round which is repeated after a power cut begins with
the state that it began with the first time.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgrass.engines.base import Engine
from fedgrass.errors import EngineError
from fedgrass.files import write_atomically

# 256 MB: protobuf itself ends at 2 GB, a gateway's memory far earlier.
MAX_STATE_BYTES = 1 << 28
# A round's own and the one before: what a repeated round may need.
_MOST_FILES = 2

PARTITION, PARTITIONS = "partition-id", "num-partitions"
"""What Flower calls a virtual device's number, and how many there are."""

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A participant.

    Attributes
    ----------
    name
        The thing's name, or the virtual device's.
    config
        The app's ``context.node_config``: ``partition-id`` and ``num-partitions`` in a simulation, ``thing`` on a device.
    folder
        Where its state is kept; None forgets it with the process.
    round, given
        The round that it evaluates in, if it does not train first, and what the operator adds to the configuration.
    """

    name: str
    config: Mapping[str, Scalar] = field(default_factory=dict)
    folder: Path | None = None
    round: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The app's ``context.node_id``, by the name: the first 63 bits of its SHA-256."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") >> 1


def join(engine: Engine, node: Node) -> Engine:
    """Tell an engine whom it runs as, if it wants to know; returns the engine."""
    # Duck typing, so that an engine from outside may ask for it as well.
    if hasattr(engine, "node"):
        engine.node = node
    return engine


class StateFiles:
    """A node's state by round, in a folder.

    The round that is asked for begins with the newest state of an earlier round. Only the last two are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, number: int) -> Any:
        """Return the state, as a ``RecordDict``, that a round begins with.

        Raises
        ------
        EngineError
            If it is damaged, or too large.
        """
        earlier = [found for found in self._numbers() if found < number]
        return self._read(self._path(max(earlier))) if earlier else _records()

    def after(self, number: int) -> Any:
        """Return the newest state up to a round's own; raises as `before` does."""
        return self.before(number + 1)

    def keep(self, number: int, state: Any) -> None:
        """Write the state that a round leaves.

        Raises
        ------
        EngineError
            If it is larger than 256 MB.
        """
        content = encode(state)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(number), content)
        numbers = self._numbers()
        # One of a later number is another fleet's, or of a fleet that started over.
        earlier = sorted(found for found in numbers if found <= number)
        for found in numbers:
            if found not in earlier[-_MOST_FILES:]:
                self._path(found).unlink(missing_ok=True)

    def _read(self, path: Path) -> Any:
        # Looked at before it is read, so that a damaged file cannot fill the memory.
        if path.stat().st_size > MAX_STATE_BYTES:
            raise EngineError(f"{path}: a client app's state of more than {MAX_STATE_BYTES >> 20} MB; remove it")
        try:
            return decode(path.read_bytes())
        except Exception as error:  # whatever protobuf and NumPy raise of bytes that are none of theirs
            raise EngineError(
                f"{path}: is not a client app's state ({type(error).__name__}: {error}); remove it"
            ) from error

    def _numbers(self) -> list[int]:
        names = [path.stem.partition("-")[2] for path in self._folder.glob("state-*.pb")]
        return [int(name) for name in names if name.isdigit()]

    def _path(self, number: int) -> Path:
        return self._folder / f"state-{number:06d}.pb"


def encode(records: Any) -> bytes:
    """Return a ``RecordDict`` as bytes; raises `EngineError` if they are too many."""
    content: bytes = _serde().recorddict_to_proto(records).SerializeToString()
    if len(content) > MAX_STATE_BYTES:
        raise EngineError(
            f"a client app's state takes {len(content) >> 20} MB; at most {MAX_STATE_BYTES >> 20} MB are kept from round to round"
        )
    return content


def decode(content: bytes) -> Any:
    """Return a ``RecordDict`` of bytes that `encode` returned; raises what protobuf does of others."""
    message = importlib.import_module("flwr.proto.recorddict_pb2").RecordDict()
    message.ParseFromString(content)
    return _serde().recorddict_from_proto(message)


def _records() -> Any:
    return importlib.import_module("flwr.app").RecordDict()


def _serde() -> Any:
    return importlib.import_module("flwr.common.serde")
