"""Stream Manager's wire: length-prefixed frames of an opcode and a CBOR map, over TCP.

Both sides first send one byte, the connect version. Source: the ``stream-manager`` 1.1.2 SDK, by trial.
"""

from __future__ import annotations

import asyncio
import struct
from enum import IntEnum
from typing import Any

import cbor2

from fedgrass.errors import FedgrassError, MessageError

CONNECT_VERSION = b"\x01"
PROTOCOL_VERSION = "1.1.0"
MAX_FRAME_BYTES = 1 << 26
_HEADER = struct.Struct(">iB")


class Operation(IntEnum):
    """Opcodes; a response's differs from its request's."""

    CONNECT = 1
    CREATE = 2
    DELETE = 3
    APPEND = 4
    READ = 5
    CONNECT_RESPONSE = 6
    CREATE_RESPONSE = 7
    DELETE_RESPONSE = 8
    APPEND_RESPONSE = 9
    READ_RESPONSE = 10
    LIST = 11
    LIST_RESPONSE = 12
    DESCRIBE = 13
    DESCRIBE_RESPONSE = 14
    UPDATE = 15
    UPDATE_RESPONSE = 16
    UNKNOWN_RESPONSE = 17


class Status(IntEnum):
    """Response status codes; the SDK maps each to an exception class."""

    SUCCESS = 0
    UNKNOWN_FAILURE = 1
    UNAUTHORIZED = 2
    INVALID_REQUEST = 3
    REQUEST_PAYLOAD_TOO_LARGE = 4
    RESOURCE_NOT_FOUND = 5
    NOT_ENOUGH_MESSAGES = 13
    MESSAGE_STORE_READ_ERROR = 14
    UPDATE_NOT_ALLOWED = 17
    UNKNOWN_OPERATION = 18


class StreamError(FedgrassError):
    """A request that fails with a status of its own."""

    code = "stream"

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def encode(operation: int, payload: dict[str, Any]) -> bytes:
    """Encode one frame; its length counts the opcode."""
    body: bytes = cbor2.dumps(payload)
    return _HEADER.pack(len(body) + 1, operation) + body


async def read(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]] | None:
    """Read one frame; ``None`` at the end of the stream.

    Raises
    ------
    MessageError
        The frame is larger than 64 MiB, or not a CBOR map.
    """
    try:
        # The length counts the opcode, which the header has taken already.
        length, operation = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if not 1 <= length <= MAX_FRAME_BYTES:
            raise MessageError(f"Stream Manager frame of {length} bytes: expected 1 to {MAX_FRAME_BYTES}")
        body = await reader.readexactly(length - 1)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        payload = cbor2.loads(body)
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise MessageError(f"Stream Manager frame: not CBOR ({error})") from error
    if not isinstance(payload, dict):
        raise MessageError(f"Stream Manager frame: expected a map, found {type(payload).__name__}")
    return operation, payload
