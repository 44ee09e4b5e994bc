"""The event-stream message encoding (``application/vnd.amazon.eventstream``) that Greengrass IPC is framed in.

A message is a prelude (total length, headers length, CRC-32 of both), headers, a payload and a CRC-32 of all that
precedes it; every integer is big-endian. Source: the AWS event-stream encoding specification and aws-c-event-stream.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedgrass.errors import MessageError

HeaderValue = bool | int | str | bytes

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_HEADER_BYTES = 128 * 1024
_PRELUDE = struct.Struct(">III")
_OVERHEAD = _PRELUDE.size + 4

_BOOL_TRUE, _BOOL_FALSE, _INT32, _BYTES, _STRING = 0, 1, 4, 6, 7
# Types that no IPC client sends as of awsiotsdk 1.31, but which a valid message may hold.
_FIXED: dict[int, struct.Struct] = {
    2: struct.Struct(">b"),
    3: struct.Struct(">h"),
    _INT32: struct.Struct(">i"),
    5: struct.Struct(">q"),
    8: struct.Struct(">q"),
}
_UUID = 9


@dataclass(frozen=True)
class Message:
    """One event-stream message."""

    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    payload: bytes = b""


def encode(message: Message) -> bytes:
    """Encode ``message`` with both checksums. Integers are sent as int32, the only width that the protocol uses."""
    headers = b"".join(_encode_header(name, value) for name, value in message.headers.items())
    total = len(headers) + len(message.payload) + _OVERHEAD
    if len(headers) > MAX_HEADER_BYTES or total > MAX_MESSAGE_BYTES:
        raise MessageError(f"event-stream message of {total} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    prelude = struct.pack(">II", total, len(headers))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + message.payload
    return body + struct.pack(">I", zlib.crc32(body))


def decode(frame: bytes) -> Message:
    """Decode one whole frame.

    Raises
    ------
    MessageError
        A length or a checksum is wrong, or a header is malformed.
    """
    headers_length = _check_prelude(frame[: _PRELUDE.size], actual=len(frame))
    # Over everything before it, the prelude with its own checksum included.
    (checksum,) = struct.unpack(">I", frame[-4:])
    if checksum != zlib.crc32(frame[:-4]):
        raise MessageError("event-stream message: its checksum does not match its content")
    end = _PRELUDE.size + headers_length
    return Message(_decode_headers(frame[_PRELUDE.size : end]), frame[end:-4])


async def read(reader: asyncio.StreamReader) -> Message | None:
    """Read one message; ``None`` at the end of the stream."""
    try:
        # Its checksum is tested before its lengths are believed: they say how many bytes to wait for.
        prelude = await reader.readexactly(_PRELUDE.size)
        _check_prelude(prelude)
        (total,) = struct.unpack_from(">I", prelude)
        rest = await reader.readexactly(total - _PRELUDE.size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return decode(prelude + rest)


def _check_prelude(prelude: bytes, *, actual: int | None = None) -> int:
    if len(prelude) < _PRELUDE.size:
        raise MessageError(f"event-stream message: {len(prelude)} bytes are too few for a prelude")
    total, headers_length, checksum = _PRELUDE.unpack(prelude)
    if checksum != zlib.crc32(prelude[:8]):
        raise MessageError("event-stream message: the checksum of its prelude does not match")
    if not _OVERHEAD + headers_length <= total <= MAX_MESSAGE_BYTES or headers_length > MAX_HEADER_BYTES:
        raise MessageError(f"event-stream message: lengths {total} and {headers_length} are out of range")
    if actual is not None and actual != total:
        raise MessageError(f"event-stream message: expected {total} bytes, found {actual}")
    return int(headers_length)


def _encode_header(name: str, value: HeaderValue) -> bytes:
    encoded = name.encode()
    prefix = struct.pack(">B", len(encoded)) + encoded
    # Before int, of which bool is a subclass.
    if isinstance(value, bool):
        return prefix + bytes([_BOOL_TRUE if value else _BOOL_FALSE])
    if isinstance(value, int):
        return prefix + struct.pack(">Bi", _INT32, value)
    kind, data = (_STRING, value.encode()) if isinstance(value, str) else (_BYTES, value)
    return prefix + struct.pack(">BH", kind, len(data)) + data


def _decode_headers(data: bytes) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {}
    position = 0
    try:
        while position < len(data):
            length = data[position]
            name = data[position + 1 : position + 1 + length].decode()
            kind = data[position + 1 + length]
            position += 2 + length
            headers[name], position = _decode_value(kind, data, position)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise MessageError(f"event-stream message: malformed headers ({error})") from error
    return headers


def _decode_value(kind: int, data: bytes, position: int) -> tuple[HeaderValue, int]:
    if kind in (_BOOL_TRUE, _BOOL_FALSE):
        return kind == _BOOL_TRUE, position
    if kind in _FIXED:
        (number,) = _FIXED[kind].unpack_from(data, position)
        return int(number), position + _FIXED[kind].size
    if kind == _UUID:
        start, end = position, position + 16
    elif kind in (_BYTES, _STRING):
        (length,) = struct.unpack_from(">H", data, position)
        start, end = position + 2, position + 2 + length
    else:
        raise MessageError(f"event-stream message: header type {kind} is not one of 0 to 9")
    if end > len(data):
        raise MessageError("event-stream message: a header is longer than the headers")
    raw = data[start:end]
    return (raw.decode() if kind == _STRING else raw), end
