"""Reading several updates side by side, tile by tile, while what was read is being worked on.

Side by side, because then a tile of the sum is fetched from memory once for all of them, and because each of several S3
connections fills while another one is read. A thread of its own reads and decodes; `readinto` and NumPy release the GIL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import BinaryIO

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
        self.free = Semaphore()  # whether the last block is done with: the next one takes its place
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


_Item = tuple[slice, OpenUpdate, Floats] | BaseException | None


def scan(updates: Sequence[OpenUpdate], layout: Layout) -> Iterator[tuple[slice, OpenUpdate, Floats]]:
    """Yield each tile of each update: tile by tile, and within a tile in the order given.

    The values are finite, may be changed, and are overwritten later. An update found to be bad gets its ``error`` and is
    not heard of again; what it gave before must then be undone by the caller.

    Raises
    ------
    TransferError
        If the storage fails.
    """
    ready: SimpleQueue[_Item] = SimpleQueue()
    stopped: list[bool] = []
    reader = Thread(target=_read, args=(updates, layout, ready.put, stopped), name="read-updates", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            _, update, values = item
            if update.error is None:
                try:
                    update.squares += sum_of_squares(values)
                    yield item
                except UpdateError as error:
                    update.error = error
            update.free.release()
        for update in updates:
            update.conclude()
    finally:
        stopped.append(True)
        for update in updates:
            update.free.release()
        reader.join()


def _read(updates: Sequence[OpenUpdate], layout: Layout, put: Callable[[_Item], None], stopped: list[bool]) -> None:
    try:
        for span in layout.tiles(BLOCK):
            for update in updates:
                update.free.acquire()
                if stopped:
                    return
                if update.error is None and (values := _next(update, span, layout)) is not None:
                    put((span, update, values))
                else:
                    update.free.release()
        for update in updates:
            update.free.acquire()
            if update.error is None and not stopped:
                _require_end(update)
        put(None)
    except BaseException as error:  # noqa: BLE001 - is raised again where the values are awaited
        put(error)


def _next(update: OpenUpdate, span: slice, layout: Layout) -> Floats | None:
    try:
        block = next(update.blocks)
    except UpdateError as error:
        update.error = error
        return None
    start = layout.starts[block.parameter.name] + block.offset
    if (start, start + len(block.values)) != (span.start, span.stop):
        raise FedgrassError(
            f"codec {update.header.codec!r}: gave another block than the one of {BLOCK} scalars that was due"
        )
    return block.values


def _require_end(update: OpenUpdate) -> None:
    try:
        next(update.blocks, None)  # a codec may notice only at the end that something is wrong
    except UpdateError as error:
        update.error = error
