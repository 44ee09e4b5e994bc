"""A large object as one stream, its parts fetched side by side by several connections.

S3 is planned with 85 to 90 MB a second for each connection, a tenth of what a processor decrypts. So a large object
that is read alone is shared by two connections, if there are two processors. Measured in
docs/decisions/0067-updates-by-signed-requests.md.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

PART = 4 << 20
"""Bytes that are asked for at once. Smaller ones cost more requests, larger ones more memory."""

WORTH = 8 * PART
"""Bytes from which on an object is fetched in ranges."""

CONNECTIONS = min(2, os.cpu_count() or 1)
"""Connections that fetch large objects in ranges, of all together. With three a job's reading takes more than 100 MB."""

_BLOCK = 1 << 20  # bytes after which a part that nobody waits for any more is given up


def share_of(objects: int) -> int:
    """Return how many connections each of so many objects gets that are open at once."""
    return max(1, CONNECTIONS // max(1, objects))


class RangedBody(io.RawIOBase):
    """An object's bytes in order, while the next parts are on their way.

    Memory: `PART` for each connection, and one more.

    Parameters
    ----------
    open_part
        Opens the bytes from one position up to another; threads call it. What it or its stream raises is raised to the reader, in
        its place.
    size
        Bytes of the object.
    connections
        Parts that are fetched at once.
    check
        Takes the object's bytes in order, before the reader gets them; raises if they are not the object's.
    """

    def __init__(
        self,
        open_part: Callable[[int, int], io.RawIOBase],
        size: int,
        connections: int,
        check: Callable[[memoryview], object],
    ) -> None:
        self._open_part = open_part
        self._check = check
        self._stopped = Event()
        self._parts = iter([(start, min(start + PART, size)) for start in range(0, size, PART)])
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="range")
        self._coming: deque[Future[memoryview]] = deque()
        self._rest = memoryview(b"")  # of the part that is being read
        self._rooms = deque(bytearray(PART) for _ in range(connections + 1))  # the first is free, or being read
        for _ in range(connections + 1):
            self._ask()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer with the next bytes, as many as are there of a part; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._rest and self._coming:
            # Taken off when it is there: a part that failed fails again, and those behind it are not read in its place.
            self._rest = self._coming[0].result()
            self._coming.popleft()
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._check(view[:count])
        if count and not self._rest:
            self._ask()
        return count

    def close(self) -> None:
        """Give up what is on its way, and wait for each connection's block: no request outlives the stream."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        super().close()

    def _ask(self) -> None:
        """Have the next part fetched, if there is one, where the part lies that was read."""
        if (part := next(self._parts, None)) is not None:
            room = memoryview(self._rooms[0])[: part[1] - part[0]]
            self._rooms.rotate(-1)
            self._coming.append(self._pool.submit(self._fetch, *part, room))

    def _fetch(self, start: int, end: int, room: memoryview) -> memoryview:
        filled = 0
        with self._open_part(start, end) as stream:
            # A stream that ends before its last byte raises.
            while filled < len(room) and not self._stopped.is_set():
                filled += stream.readinto(room[filled : filled + _BLOCK]) or 0
        return room
