"""Small models: an update is read and decoded whole, judged, and only then added; one after the other within a lane.

A few threads work on a lane each. A lane's sum is that of its good updates in order, some of them at a time in float32 and those
in float64, so it is as exact for ten thousand updates as for ten, and depends on nothing else.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedgrass.cloud.aggregator.arithmetic import PIECE, Rounded, Terms, norm_of, sum_of_squares
from fedgrass.cloud.aggregator.lanes import lane_of
from fedgrass.cloud.aggregator.screening import Accepted, Screening, WeightOf
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.stored_matrix import StoredMatrix
from fedgrass.cloud.aggregator.vector import aligned
from fedgrass.errors import UpdateError
from fedgrass.strategies.arithmetic.interfaces import Sums
from fedgrass.update.codecs import Floats
from fedgrass.update.decoded import DecodedUpdate

Doubles = NDArray[np.float64]
T = TypeVar("T")

CHUNK = 16
"""Good updates of a lane that are added in float32 before their sum is. Changing it changes results by rounding."""

# NumPy lets go of the interpreter's lock while it adds. Each thread takes some 24 bytes per parameter, hence the bound.
THREADS = min(4, os.cpu_count() or 1)
_WORTH = 1 << 20  # scalars: with less to read, a thread takes longer to begin than it saves


class Rows:
    """Reads whole updates. Memory: 8 bytes per parameter, and some 24 in each thread, whatever the number of updates."""

    def __init__(self, screening: Screening, terms: Terms | None = None) -> None:
        self._intake = screening
        self._terms = terms or Rounded()
        self._size = screening.layout.size
        # Set by the first thread that fails; the others stop at their next update instead of reading on for nothing.
        self._failed = Event()
        self._known: dict[str, Accepted] = {}  # of updates in memory, which do not change between two readings

    def measure(self, references: Sequence[UpdateReference]) -> list[Accepted]:
        """Validate updates; return the accepted ones, in order."""
        return [one for _, good in self._by_lane(references, self._measured) for one in good]

    def spool(self, references: Sequence[UpdateReference], spool: StoredMatrix) -> list[Accepted]:
        """Validate updates and store the accepted ones; return these, in order."""

        def work(some: Sequence[UpdateReference]) -> list[Accepted]:
            good = []
            for one, row in self._good_rows(some):
                spool.write(one.reference.key, row)
                good.append(one)
            return good

        return [one for _, good in self._by_lane(references, work) for one in good]

    def sum(self, references: Sequence[UpdateReference], weight: WeightOf) -> tuple[Doubles, list[Accepted]]:
        """Return the weighted sum of the good ones among updates in lane order, and these."""
        total = np.zeros(self._size, np.float64)
        together: list[Accepted] = []
        for _, lane_sum, good in self.lanes(references, weight):
            if good:
                np.add(total, lane_sum, out=total)
                together += good
        return total, together

    def lanes(
        self, references: Sequence[UpdateReference], weight: WeightOf
    ) -> Iterator[tuple[int, Doubles, list[Accepted]]]:
        """Yield the sum of each lane that has updates, in order."""

        def work(some: Sequence[UpdateReference]) -> tuple[Doubles, list[Accepted]]:
            lane_sum = Accumulator(self._size, self._terms)
            good = []
            for one, row in self._good_rows(some):
                lane_sum.add(row, weight(one.reference, one.facts))
                good.append(one)
            return lane_sum.finish(), good

        for lane, (lane_sum, good) in self._by_lane(references, work):
            yield lane, lane_sum, good

    def _measured(self, references: Sequence[UpdateReference]) -> list[Accepted]:
        return [one for one, _ in self._good_rows(references)]

    def _good_rows(self, references: Sequence[UpdateReference]) -> Iterator[tuple[Accepted, Floats]]:
        """Yield each good update with its values, which the next one overwrites."""
        # One buffer for each thread, used again for every update: memory does not grow with their number.
        row, spare = aligned(self._size, np.dtype(np.float32)), aligned(min(PIECE, self._size), np.dtype(np.float32))
        opening = self._intake.openers(references)
        try:
            for reference, opener in opening:
                if self._failed.is_set():
                    return
                try:
                    good = self._read(reference, opener, row, spare)
                except UpdateError as error:
                    self._intake.refuse(reference, error)
                else:
                    yield good, row
        finally:
            opening.close()

    def _read(self, reference: UpdateReference, opener: Callable[[], BinaryIO], row: Floats, spare: Floats) -> Accepted:
        with opener() as stream:
            if isinstance(stream, DecodedUpdate) and (known := self._known.get(reference.key)) is not None:
                stream.read_whole(row)
                return known
            # The header is judged before any value is read: a bad one costs no decoding.
            reader, facts = self._intake.begin(reference, stream)
            reader.read_whole(row)
        accepted = self._intake.passed(reference, facts, norm_of([sum_of_squares(row, spare)]))
        if isinstance(reader, DecodedUpdate):
            self._known[reference.key] = accepted
        return accepted

    def _by_lane(
        self, references: Sequence[UpdateReference], work: Callable[[Sequence[UpdateReference]], T]
    ) -> Iterator[tuple[int, T]]:
        """Yield what ``work`` makes of each lane's updates, in order of the lanes."""

        def guarded(some: Sequence[UpdateReference]) -> T:
            try:
                with np.errstate(all="ignore"):
                    return work(some)
            # Interrupts too: a thread pool would otherwise finish all lanes before Ctrl-C shows.
            except BaseException:
                self._failed.set()  # the other threads need not go on
                raise

        # groupby needs lane order, which `Screening.admit` gives.
        lanes = [(lane, list(some)) for lane, some in itertools.groupby(references, key=lambda one: lane_of(one.thing))]
        threads = min(THREADS, len(lanes), 1 + self._size * len(references) // _WORTH)
        if threads <= 1:
            yield from ((lane, guarded(some)) for lane, some in lanes)
            return
        waiting: deque[tuple[int, Future[T]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="lane") as pool:
            # At most one finished lane a thread waits: sixteen float64 sums at once would be eight bytes times sixteen
            # per parameter.
            for lane, some in lanes:
                waiting.append((lane, pool.submit(guarded, some)))
                if len(waiting) > threads:  # what is done waits for its turn, and takes memory
                    first, found = waiting.popleft()
                    yield first, found.result()
            yield from ((lane, found.result()) for lane, found in waiting)


class Accumulator:
    """The weighted sum of one lane's updates, in the order in which they are added."""

    def __init__(self, size: int, terms: Terms) -> None:
        self._terms = terms
        self._total: Doubles = np.zeros(size, np.float64)
        self._chunk: Sums = aligned(size, terms.dtype)
        self._held = 0

    def add(self, values: Floats, weight: float) -> None:
        """Add a good update's values, which are overwritten."""
        if not self._held:
            # The first of a chunk is written, not added: so the chunk needs no clearing.
            self._terms.scaled(values, weight, self._chunk)
        else:
            self._terms.add_scaled(self._chunk, values, weight)
        self._held += 1
        # float32 sums of sixteen lose some 1e-7; longer ones would lose more with every addend.
        if self._held == CHUNK:
            self.finish()

    def finish(self) -> Doubles:
        """Return the sum."""
        if self._held:
            np.add(self._total, self._chunk, out=self._total)
            self._held = 0
        return self._total
