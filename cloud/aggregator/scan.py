"""Reading several updates side by side, tile by tile, while what was read is being worked on.

Side by side, because then a tile of the sum is fetched from memory once for all of them, and because each of several S3
connections fills while another one is read. A thread of its own does all that can be done with one block, while that is in its
core's cache; `readinto` and NumPy release the GIL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

import numpy as np

from cloud.aggregator.checks import Examiner, sum_of_squares
from cloud.aggregator.sources import UpdateReference
from cloud.aggregator.strategies.base import Facts
from cloud.aggregator.vector import Layout
from fedgrass.errors import FedgrassError, UpdateError
from fedgrass.update.codecs import Buffers, Floats
from fedgrass.update.reader import Block, UpdateReader

BLOCK = 1 << 17  # scalars: half a megabyte; a tile of the sum and a block of an update stay in a core's cache


class OpenUpdate:
    """An update whose header is good. Its values are still evidence: ``error`` tells what is wrong with them."""

    def __init__(
        self,
        reference: UpdateReference,
        stream: BinaryIO,
        layout: Layout,
        buffers: Buffers,
        examiner: Examiner,
    ) -> None:
        self._stream = stream
        self._examiner = examiner
        reader = UpdateReader(stream, file_bytes=reference.bytes, parameters=layout.parameters, buffers=buffers)
        self.facts: Facts = examiner.check_header(reference, reader.header)
        self.reference = reference
        self.header = reader.header
        self.blocks: Iterator[Block] = reader.blocks()
        self.squares = 0.0
        self.error: UpdateError | None = None

    @property
    def norm(self) -> float:
        """L2 norm of what was read, to six digits: further ones depend on the processor."""
        return float(f"{math.sqrt(self.squares):.6g}")

    def conclude(self) -> None:
        """Judge the norm, when all was read."""
        try:
            if self.error is None:
                self._examiner.check_norm(self.norm)
        except UpdateError as error:
            self.error = error

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()


_SLOTS = 4  # blocks between the two threads
_Item = tuple[slice, OpenUpdate, Floats, Floats] | BaseException | None


def scan(
    updates: Sequence[OpenUpdate], layout: Layout, factors: Mapping[str, float] | None = None
) -> Iterator[tuple[slice, OpenUpdate, Floats]]:
    """Yield each tile of each update: tile by tile, and within a tile in the order given.

    The values are finite, are multiplied by the update's factor if there are factors (by key), and are overwritten later. An
    update found to be bad gets its ``error`` and is not heard of again; what it gave before must then be undone by the caller.

    Raises
    ------
    TransferError
        If the storage fails.
    """
    reader = _Reader(updates, layout, factors or {})
    reader.start()
    try:
        while (item := reader.ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            span, update, values, slot = item
            yield span, update, values
            reader.free.put(slot)
        for update in updates:
            update.conclude()
    finally:
        reader.stop()


class _Reader(Thread):
    """Reads, decodes, checks and scales: all that can be done while a block is still in this core's cache."""

    def __init__(self, updates: Sequence[OpenUpdate], layout: Layout, factors: Mapping[str, float]) -> None:
        super().__init__(name="read-updates", daemon=True)
        self.ready: SimpleQueue[_Item] = SimpleQueue()
        self.free: SimpleQueue[Floats | None] = SimpleQueue()
        for _ in range(_SLOTS):
            self.free.put(np.empty(BLOCK, np.float32))
        self._updates = updates
        self._layout = layout
        self._factors = {id(u): np.float32(factors.get(u.reference.key, 1.0)) for u in updates}

    def stop(self) -> None:
        self.free.put(None)
        self.join()

    def run(self) -> None:
        try:
            for span in self._layout.tiles(BLOCK):
                for update in self._updates:
                    if update.error is None and not self._pass_on(update, span):
                        return
            for update in self._updates:
                _require_end(update)
            self.ready.put(None)
        except BaseException as error:  # noqa: BLE001 - is raised again where the values are awaited
            self.ready.put(error)

    def _pass_on(self, update: OpenUpdate, span: slice) -> bool:
        """Hand over the update's next block; False if nobody waits for it any more."""
        try:
            values = self._block(update, span)
        except UpdateError as error:
            update.error = error
            return True
        slot = self.free.get()
        if slot is None:
            return False
        scaled = slot[: len(values)]
        np.multiply(values, self._factors[id(update)], out=scaled)
        self.ready.put((span, update, scaled, slot))
        return True

    def _block(self, update: OpenUpdate, span: slice) -> Floats:
        block = next(update.blocks)
        values = block.values
        start = self._layout.starts[block.parameter.name] + block.offset
        if (start, start + len(values)) != (span.start, span.stop):
            raise FedgrassError(
                f"codec {update.header.codec!r}: gave another block than the {BLOCK} scalars that were due"
            )
        update.squares += sum_of_squares(values)
        return values


def _require_end(update: OpenUpdate) -> None:
    try:
        if update.error is None:
            next(update.blocks, None)  # a codec may notice only at the end that something is wrong
    except UpdateError as error:
        update.error = error
