"""Reading several updates side by side, tile by tile, each of a few threads with a tile of its own.

Side by side, because then a tile of the sum is fetched from memory once for all of them, and because each of several S3
connections fills while another one is read. A thread does all that is to be done with a block while that is in its core's
cache. The threads follow one another through the updates: a block is read when the one before it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from threading import Condition, Thread
from typing import BinaryIO

import numpy as np
from threadpoolctl import ThreadpoolController

from cloud.aggregator.checks import Examiner, sum_of_squares
from cloud.aggregator.sources import UpdateReference
from cloud.aggregator.strategies.base import Facts
from cloud.aggregator.vector import Layout, aligned
from fedgrass.errors import UpdateError
from fedgrass.update.codecs import Floats
from fedgrass.update.reader import UpdateReader

BLOCK = 1 << 17  # scalars: half a megabyte stays in a core's cache, and calls from Python stay few
_THREADS = min(4, os.cpu_count() or 1)
_WORTH = 1 << 20  # scalars: with less to read, a thread takes longer to begin than it saves
_BLAS = ThreadpoolController().select(user_api="blas")


class OpenUpdate:
    """An update whose header is good. Its values are still evidence: ``error`` tells what is wrong with them."""

    def __init__(self, reference: UpdateReference, stream: BinaryIO, layout: Layout, examiner: Examiner) -> None:
        self._stream = stream
        self._examiner = examiner
        self._reader = UpdateReader(stream, file_bytes=reference.bytes, parameters=layout.parameters)
        self.facts: Facts = examiner.check_header(reference, self._reader.header)
        self.reference = reference
        self.squares = 0.0
        self.error: UpdateError | None = None

    @property
    def norm(self) -> float:
        """L2 norm of what was read, to six digits: further ones depend on the processor."""
        return float(f"{math.sqrt(self.squares):.6g}")

    def fill(self, values: Floats) -> bool:
        """Read the next values; whether they are good."""
        try:
            if self.error is None:
                self._reader.fill(values)
                self.squares += sum_of_squares(values)
        except UpdateError as error:
            self.error = error
        return self.error is None

    def conclude(self) -> None:
        """Judge what shows only when all was read: the end of the file, and the norm."""
        try:
            if self.error is None:
                self._reader.require_end()
                self._examiner.check_norm(self.norm)
        except UpdateError as error:
            self.error = error

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()


Blocks = Iterator[tuple[OpenUpdate, Floats]]
Tiles = Iterator[tuple[slice, Blocks]]


def scan(updates: Sequence[OpenUpdate], layout: Layout, work: Callable[[Tiles], None]) -> None:
    """Read the updates, and have each of a few threads work on some of the tiles.

    ``work`` is called once by each thread. It gets tiles, to be used up one after the other; of each tile it gets the values
    of each update in the order given: finite, its own to change, and overwritten by the next. An update found to be bad gets its
    ``error`` and is not heard of again; what it gave before must then be undone by the caller.

    Raises
    ------
    TransferError
        If the storage fails.
    """
    passage = _Passage(updates, layout)
    count = min(_THREADS, 1 + layout.size * len(updates) // _WORTH)
    others = [Thread(target=passage.run, args=(work,), name="scan", daemon=True) for _ in range(count - 1)]
    with _BLAS.limit(limits=1):  # its threads would be in the way of these
        for thread in others:
            thread.start()
        passage.run(work)
        for thread in others:
            thread.join()
    if passage.failure is not None:
        raise passage.failure
    for update in updates:
        update.conclude()


class _Passage:
    """The order in which threads may pass through the updates."""

    def __init__(self, updates: Sequence[OpenUpdate], layout: Layout) -> None:
        self.failure: BaseException | None = None
        self._updates = updates
        self._tiles = enumerate(layout.tiles(BLOCK))
        self._room = min(BLOCK, layout.size)
        self._read = [0] * len(updates)  # tiles that were read of each update
        self._changed = Condition()

    def run(self, work: Callable[[Tiles], None]) -> None:
        try:
            with np.errstate(all="ignore"):
                work(self._own_tiles())
        except BaseException as error:  # noqa: BLE001 - is raised again where all threads have ended
            with self._changed:
                self.failure = self.failure or error
                self._changed.notify_all()

    def _own_tiles(self) -> Tiles:
        buffer: Floats = aligned(self._room, np.dtype(np.float32))
        while self.failure is None:
            with self._changed:
                number, span = next(self._tiles, (0, None))
            if span is None:
                return
            yield span, self._blocks(number, buffer[: span.stop - span.start])

    def _blocks(self, number: int, values: Floats) -> Blocks:
        for position, update in enumerate(self._updates):
            if self._read[position] != number:
                with self._changed:
                    self._changed.wait_for(lambda p=position: self._read[p] == number or self.failure)  # type: ignore[misc]
            if self.failure is not None:
                return
            good = update.fill(values)
            with self._changed:
                self._read[position] += 1
                self._changed.notify_all()
            if good:
                yield update, values
