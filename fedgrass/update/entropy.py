"""Entropy coding of a whole update: one zstandard frame (RFC 8878) over what the tensors' bytes would be.

A frame can claim to hold anything. Decoding asks it for exactly the bytes that the model calls for, in the reader's own
buffers, with a bounded window, and refuses what is left over: no frame makes it take more memory or time than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedgrass.errors import UpdateError
from fedgrass.tensors import Array

TENSOR = "zstd"
"""Name of the one tensor of a file that is so encoded."""

_LEVEL = 9  # beyond it, updates get no smaller
_WINDOW_LOG = 20  # what a decoder holds, and the aggregator has several at work
# Bytes taken from the stream at a time: zstandard's own largest block.
_READ = 1 << 17
# A few: the aggregator decodes in a few threads.
_KEPT = 4
_idle: list[
    zstandard.ZstdDecompressor
] = []  # for whoever comes next: making one takes longer than to decode a small update


def compress(arrays: Iterable[Array]) -> NDArray[np.uint8]:
    """Return the frame; the same arrays give the same bytes."""
    # A checksum: a flipped bit would otherwise decode to other numbers.
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG, write_checksum=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    parts = [compressor.compress(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) for array in arrays]
    return np.frombuffer(b"".join([*parts, compressor.flush()]), np.uint8)


class Decompressor:
    """The bytes of a frame that the next ``size`` bytes of a stream are, for ``readinto``.

    Raises
    ------
    UpdateError
        Coded ``corrupt_data`` while reading, if they are not a frame; ``truncated`` if the stream ends within them.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._source = _Portion(stream, size)
        try:
            decompressor = _idle.pop()
        except IndexError:
            # A frame says itself how much memory it wants: one that wants more than ours is refused.
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
        self._decompressor: zstandard.ZstdDecompressor | None = decompressor
        self._reader = decompressor.stream_reader(cast(BinaryIO, self._source), read_size=_READ)

    def readinto(self, buffer: memoryview) -> int:
        """Fill as much of the buffer as is available at once."""
        try:
            count: int = self._reader.readinto(buffer)
        except zstandard.ZstdError as error:
            raise UpdateError("corrupt_data", f"the zstandard frame cannot be decoded ({error})") from error
        # A short frame must not leave the rest of an array as it was.
        if not count and buffer:
            raise UpdateError("corrupt_data", "the zstandard frame holds less than the model calls for")
        return count

    def require_end(self) -> None:
        """Raise `UpdateError` if the frame, or the file behind it, goes on."""
        try:
            # One byte is enough to know that the frame goes on.
            more = self._reader.read(1)
        except zstandard.ZstdError as error:
            raise UpdateError("corrupt_data", f"the zstandard frame cannot be decoded ({error})") from error
        if more or self._source.left:
            raise UpdateError("corrupt_data", "the zstandard frame holds more than the model calls for")
        if self._decompressor is not None and len(_idle) < _KEPT:
            _idle.append(self._decompressor)
        self._decompressor = None  # it is another's now, or nobody's


class _Portion:
    """The next ``left`` bytes of a stream."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int) -> bytes:
        block = self._stream.read(min(size, self.left))
        if not block and self.left:
            raise UpdateError("truncated", f"update: truncated, {self.left} bytes are missing")
        self.left -= len(block)
        return block
