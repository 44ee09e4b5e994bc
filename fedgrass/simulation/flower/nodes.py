"""The processes in which virtual devices answer messages: each has loaded the ClientApp once."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

from fedgrass.engines.flower_node import PARTITION, PARTITIONS, Scalar, decode, encode
from fedgrass.engines.flower_project import Project
from fedgrass.strategies.arithmetic.flower_trees import identify

_RAISED = 3  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@dataclass(frozen=True)
class Answer:
    """A node's reply, as bytes, the state that it leaves, and the traceback of what the app raised."""

    reply: bytes
    state: bytes
    trouble: str = ""


# One per process: what `prepare` loaded once.
class _Loaded:
    app: Any = None
    run_config: Mapping[str, Scalar]


def prepare(project: Project) -> None:
    """Load the ClientApp, in a process of the pool."""
    _Loaded.app = project.load(project.client_app, "ClientApp")
    _Loaded.run_config = project.run_config


def answer(message: bytes, state: bytes, node: int, partition: int, partitions: int) -> Answer:
    """Have the app answer a message.

    Parameters
    ----------
    message
        The message.
    state
        What the node left after its last message.
    node
        Its id.
    partition, partitions
        Its number, and how many there are.
    """
    identify(node=node)
    flower = importlib.import_module("flwr.app")
    found = message_of(message)
    context = flower.Context(
        run_id=1,
        node_id=node,
        node_config={PARTITION: partition, PARTITIONS: partitions},
        state=decode(state),
        run_config=dict(_Loaded.run_config),
    )
    trouble = ""
    try:
        reply = _Loaded.app(found, context)
    except Exception as error:  # noqa: BLE001 - of the app itself, and told as such
        trouble = "".join(traceback.format_exception(error))
        reply = flower.Message(flower.Error(code=_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=found)
    return Answer(bytes_of(reply), encode(context.state), trouble)


def bytes_of(message: Any) -> bytes:
    """Return a message as bytes."""
    content: bytes = importlib.import_module("flwr.common.serde").message_to_proto(message).SerializeToString()
    return content


def message_of(content: bytes) -> Any:
    """Return the message that `bytes_of` encoded."""
    found = importlib.import_module("flwr.proto.message_pb2").Message()
    found.ParseFromString(content)
    return importlib.import_module("flwr.common.serde").message_from_proto(found)


def peak_mb() -> tuple[str, float]:
    """Return this process's name and its peak resident memory in MB."""
    import resource

    return current_process().name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
