"""A server optimizer's state, versioned with the model: an object beside the model's files, which devices never fetch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.control import SERVER_STATE
from fedgrass.errors import ReleaseError
from fedgrass.files import write_atomically
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import model_prefix, report_prefix
from fedgrass.protocol.records import RoundRecord
from fedgrass.strategies.arithmetic.interfaces import State
from fedgrass.strategies.base import Strategy, WeightedMean

STATE = SERVER_STATE
# 64 GiB: above the state of any model. It stops a file that cannot be one.
_MAX_BYTES = 64 << 30


def load_state(bucket: Bucket, base: Base, strategy: Strategy, scratch: Path) -> State:
    """Fetch the server optimizer's state that was left with a base.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    base
        The model that the state lies beside.
    strategy
        Whose state is wanted.
    scratch
        Folder that the file is written to.

    Returns
    -------
    State
        Vectors of all parameters by slot; empty if there is none, or it belongs to another strategy.
    """
    # Most strategies keep nothing: one request to S3 less.
    if not _keeps_state(strategy):
        return {}
    content = bucket.read(base.parameters_key.removesuffix(PARAMETERS) + STATE, max_bytes=_MAX_BYTES)
    if content is None:
        return {}
    write_atomically(scratch / STATE, content)
    return read_state(scratch / STATE, base.parameters_sha256, strategy)


def read_state(path: Path, parameters_sha256: str, strategy: Strategy) -> State:
    """Read the server optimizer's state from a file.

    Parameters
    ----------
    path
        The file.
    parameters_sha256
        Digest of the parameters that it must belong to.
    strategy
        Whose state is wanted.

    Returns
    -------
    State
        Vectors of all parameters by slot; empty if there is no file, or it belongs to another model or strategy.

    Raises
    ------
    TensorFileError
        If the file is damaged, or larger than its bound.
    """
    if not _keeps_state(strategy) or not path.exists():
        return {}
    state, metadata = tensors.load(path, max_bytes=_MAX_BYTES)
    # Momentum of another model or strategy would push the parameters somewhere else: without it, the optimizer starts
    # from zero.
    belongs = (metadata.get("strategy"), metadata.get("parameters_sha256")) == (strategy.name, parameters_sha256)
    return state if belongs else {}


def _keeps_state(strategy: Strategy) -> bool:
    method = strategy.method
    return bool(method.server.slots) if isinstance(method, WeightedMean) else strategy.keeps_state


def write_state(path: Path, model: Bundle, state: State, strategy: str) -> str:
    """Write the server optimizer's state that belongs to a model.

    Parameters
    ----------
    path
        File to write.
    model
        The model.
    state
        Vectors of all parameters by slot.
    strategy
        Name of the strategy.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    return tensors.save(path, state, {"strategy": strategy, "parameters_sha256": model.manifest.parameters_sha256})


def publish_state(bucket: Bucket, prefix: str, model: Bundle, state: State, strategy: str, scratch: Path) -> str:
    """Put the server optimizer's state beside a model that is about to be released, or is held; safe to repeat.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    prefix
        The model's prefix; the report's if the model is held.
    model
        The model.
    state
        Vectors of all parameters by slot.
    strategy
        Name of the strategy.
    scratch
        Folder for the file.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ReleaseError
        If another state is there.
    """
    path = scratch / STATE
    digest = write_state(path, model, state, strategy)
    bucket.publish(prefix + STATE, path)
    return digest


def release_held_state(bucket: Bucket, record: RoundRecord, sha256: str, scratch: Path) -> None:
    """Move the state that a round kept with its held model beside that model, which is about to be released.

    Parameters
    ----------
    bucket
        The fleet's bucket.
    record
        The round.
    sha256
        Digest of the state, from the round's report.
    scratch
        Folder for the file.

    Raises
    ------
    ReleaseError
        If the state is missing or another one.
    """
    key = report_prefix(record.fleet, record.round) + STATE
    content = bucket.read(key, max_bytes=_MAX_BYTES)
    # The digest is in the report: a state that somebody replaced must not steer the next round.
    if content is None or hashlib.sha256(content).hexdigest() != sha256:
        raise ReleaseError(f"{bucket.uri(key)}: is not the state that the report of round {record.round} describes")
    path = scratch / STATE
    write_atomically(path, content)
    bucket.publish(model_prefix(record.fleet, record.version) + STATE, path)
