"""The weighted sum of updates, one pass over each, with bad ones taken back out exactly."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cloud.aggregator.lanes import lane_of
from cloud.aggregator.scan import BLOCK, OpenUpdate, Tiles, scan
from cloud.aggregator.spool import read_at, write_at
from cloud.aggregator.vector import Layout, aligned
from fedgrass.update.codecs import Floats

Sums = NDArray[np.float32] | NDArray[np.float64]

_SMALL = 1 << 22


class LaneSum:
    """Adds updates in lane order (`cloud.aggregator.lanes`), some of them at a time.

    Updates are added while they are being checked, because a second pass costs as much as the first. What an update gave
    before it was found bad cannot be subtracted again exactly, so each tile is noted before it is changed, and after a bad one
    all are put back: its companions are then added again without it.

    Multiplications and additions are NumPy's own, kept apart: the same bytes on every processor.

    Memory: 4 bytes per parameter, twice that while a lane has more updates than are read at once; for a model of up to four
    million parameters 8 bytes, as it may come ten thousandfold. The notes are on disk.
    """

    def __init__(self, layout: Layout, scratch: Path | None = None) -> None:
        self._layout = layout
        self._scratch = scratch
        self._dtype = np.dtype(np.float64 if layout.size <= _SMALL else np.float32)
        self.total: Sums = np.zeros(layout.size, self._dtype)
        self._lane: int | None = None  # the lane whose sum so far is in _partial
        self._partial: Sums | None = None
        self._untouched = True

    def add(self, updates: Sequence[OpenUpdate], weights: Mapping[str, float], *, following: str | None) -> bool:
        """Add the updates, unless one of them turns out to be bad.

        Parameters
        ----------
        updates
            Next in lane order.
        weights
            Factor of each update's values, by key.
        following
            Thing whose update may come next, if any: its lane may be this one's.

        Returns
        -------
        bool
            Whether they were added; if not, the sum is what it was.
        """
        if not updates:  # all of them were refused: the lane that is carried waits for the next
            return True
        lanes = [lane_of(update.reference.thing) for update in updates]
        carried = following is not None and lane_of(following) == lanes[-1]
        if carried and self._partial is None:
            self._partial = np.zeros(self._layout.size, self._dtype)
        place = {
            id(update): (lane, np.float32(weights[update.reference.key]))
            for update, lane in zip(updates, lanes, strict=True)
        }
        with _Notes(self._scratch, self._vectors(), enabled=not self._untouched) as notes:

            def work(tiles: Tiles) -> None:
                spare: Sums = aligned(min(BLOCK, self._layout.size), self._dtype)
                for span, blocks in tiles:
                    notes.take(span)
                    partial = spare[: span.stop - span.start] if self._partial is None else self._partial[span]
                    tile = _Tile(self.total[span], partial, self._lane)
                    for update, values in blocks:
                        tile.add(values, *place[id(update)])
                    tile.end(carried)

            scan(updates, self._layout, work)
            if any(update.error for update in updates):
                notes.put_back()
                return False
        self._lane = lanes[-1] if carried else None
        self._untouched = False
        return True

    def finish(self) -> Sums:
        """Return the sum of all lanes."""
        if self._lane is not None and self._partial is not None:
            self.total += self._partial
        self._lane = self._partial = None
        return self.total

    def _vectors(self) -> list[Sums]:
        return [self.total] if self._partial is None else [self.total, self._partial]


class _Tile:
    """The work on one tile, which stays in a core's cache meanwhile."""

    def __init__(self, total: Sums, partial: Sums, lane: int | None) -> None:
        self._total = total
        self._partial = partial
        self._lane = lane

    def add(self, values: Floats, lane: int, weight: np.float32) -> None:
        if lane == self._lane:
            np.multiply(values, weight, out=values)
            np.add(self._partial, values, out=self._partial)
            return
        if self._lane is not None:
            np.add(self._total, self._partial, out=self._total)
        np.multiply(values, weight, out=self._partial)
        self._lane = lane

    def end(self, carried: bool) -> None:
        if not carried and self._lane is not None:
            np.add(self._total, self._partial, out=self._total)


class _Notes:
    """What tiles held before they were changed. Before the first change that is zero, and nothing is written."""

    def __init__(self, scratch: Path | None, vectors: Sequence[Sums], *, enabled: bool) -> None:
        self._vectors = vectors
        self._spans: list[slice] = []
        self._folder = scratch
        self._enabled = enabled
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Notes:
        if self._enabled:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, span: slice) -> None:
        """Note a tile; threads may do so at the same time."""
        self._spans.append(span)
        if self._file is not None:
            for number, vector in enumerate(self._vectors):
                write_at(self._file, vector[span], self._position(number, span))

    def put_back(self) -> None:
        for span in self._spans:
            for number, vector in enumerate(self._vectors):
                if self._file is None:
                    vector[span] = 0
                else:
                    read_at(self._file, vector[span], self._position(number, span))

    def _position(self, number: int, span: slice) -> int:
        vector = self._vectors[number]
        return int(number * vector.nbytes + span.start * vector.itemsize)
