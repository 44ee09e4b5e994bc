"""Large models: updates are read side by side, tile by tile, and a window of them is added if all of it was good.

A window's sum is written beside the one before it, and takes its place when every update of the window was judged. If one was
bad, the window is read again without it, from the sum before it, which nothing has touched. All bad ones of a window are found in
one reading, so it is read twice at most: an attacker with many cannot make it more.

Each of a few threads works on a tile of its own, and they follow one another through the updates: so each update is read in one
go whatever it comes from, and a tile of the sum is fetched from memory once for all of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread
from typing import BinaryIO, Protocol

import numpy as np

from fedgrass.cloud.aggregator.arithmetic import PIECE, Rounded, Terms, norm_of, sum_of_squares
from fedgrass.cloud.aggregator.lanes import lane_of
from fedgrass.cloud.aggregator.screening import Accepted, Screening, WeightOf
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.stored_matrix import StoredMatrix
from fedgrass.cloud.aggregator.vector import Layout, aligned
from fedgrass.errors import UpdateError
from fedgrass.strategies.arithmetic.interfaces import Sums, UpdateMetadata
from fedgrass.update.codecs import Floats
from fedgrass.update.decoded import DecodedUpdate
from fedgrass.update.reader import UpdateReader

TOGETHER = 64
"""Updates that are read side by side."""

TILE = 1 << 17
"""Scalars that are worked on at once: they stay in a core's cache, and calls from Python stay few."""

THREADS = min(4, os.cpu_count() or 1)


@dataclass
class OpenUpdate:
    """An update whose header is good. What is wrong with its values is in ``errors``, by the tile where it showed."""

    reference: UpdateReference
    reader: UpdateReader | DecodedUpdate
    facts: UpdateMetadata
    squares: list[float] = field(default_factory=list)
    errors: dict[int, UpdateError] = field(default_factory=dict)


class Work(Protocol):
    """What one thread does with its tiles."""

    def begin(self, span: slice) -> None:
        """Take up a tile."""

    def take(self, update: OpenUpdate, values: Floats) -> None:
        """Take the next update's values, which may be changed. Those of a tile that is bad are not shown."""

    def end(self) -> None:
        """Finish the tile."""


@dataclass(frozen=True)
class Standing:
    """The sum of what was added: of whole lanes, and of a lane of which more may come. None is all zeros."""

    total: Sums | None = None
    partial: Sums | None = None
    lane: int | None = None


class Tiles:
    """Reads updates side by side.

    Memory: 4 bytes per parameter for 64 updates, 16 for more, and 2 MiB in each thread; with noise twice as much.
    """

    def __init__(self, screening: Screening, terms: Terms | None = None) -> None:
        self._intake = screening
        self._terms = terms or Rounded()
        self._layout = screening.layout

    def measure(self, references: Sequence[UpdateReference]) -> list[Accepted]:
        """Validate updates; return the accepted ones, in order."""
        return self._each_window(references, _Nothing)

    def spool(self, references: Sequence[UpdateReference], spool: StoredMatrix) -> list[Accepted]:
        """Validate updates and store them, accepted or not; return the accepted ones, in order."""
        return self._each_window(references, lambda: _Spooling(spool))

    def sum(self, references: Sequence[UpdateReference], weight: WeightOf) -> tuple[Sums, list[Accepted]]:
        """Return the weighted sum of the good ones among updates in lane order, and these."""
        standing = Standing()
        together: list[Accepted] = []
        for start in range(0, len(references), TOGETHER):
            window = references[start : start + TOGETHER]
            # One of the next window is enough to tell whether the last lane goes on: updates come in lane order.
            following = references[start + TOGETHER : start + TOGETHER + 1]
            # Ends: each turn without success leaves out at least one update. As one reading finds all bad ones, there
            # are two turns at most.
            while window:
                # All streams of a window are open at once, and closed before the next window opens its own.
                with ExitStack() as streams:
                    updates = self._open(window, streams)
                    after = self._after(updates, following)
                    terms = {
                        one.reference.key: (lane_of(one.reference.thing), weight(one.reference, one.facts))
                        for one in updates
                    }
                    self._scan(updates, partial(_Adding, standing, after, terms, self._terms))
                    good = self._judge(updates)
                if len(good) == len(updates):
                    # The commit: up to here the former sum is untouched, and a bad window leaves it so.
                    standing = after if updates else standing
                    together += good
                    break
                window = [one.reference for one in good]
        # No window had a good update: the sum of nothing.
        total = standing.total if standing.total is not None else np.zeros(self._layout.size, self._terms.dtype)
        if standing.partial is not None:
            np.add(total, standing.partial, out=total)
        return total, together

    def lanes(
        self, references: Sequence[UpdateReference], weight: WeightOf
    ) -> Iterator[tuple[int, Sums, list[Accepted]]]:
        """Yield the sum of each lane that has updates, in order."""
        # Lane by lane, because each lane's sum travels by itself: windows never cross a lane here.
        for lane, some in itertools.groupby(references, key=lambda reference: lane_of(reference.thing)):
            yield lane, *self.sum(list(some), weight)

    def _each_window(self, references: Sequence[UpdateReference], work: Callable[[], Work]) -> list[Accepted]:
        good: list[Accepted] = []
        for start in range(0, len(references), TOGETHER):
            with ExitStack() as streams:
                updates = self._open(references[start : start + TOGETHER], streams)
                self._scan(updates, work)
                good += self._judge(updates)
        return good

    def _open(self, references: Sequence[UpdateReference], streams: ExitStack) -> list[OpenUpdate]:
        opening = self._intake.openers(references)
        streams.callback(opening.close)
        opened = (self._opened(reference, opener, streams) for reference, opener in opening)
        return [update for update in opened if update is not None]

    def _opened(
        self, reference: UpdateReference, opener: Callable[[], BinaryIO], streams: ExitStack
    ) -> OpenUpdate | None:
        try:
            stream = streams.enter_context(opener())
            return OpenUpdate(reference, *self._intake.begin(reference, stream))
        except UpdateError as error:
            self._intake.refuse(reference, error)
            return None

    def _scan(self, updates: Sequence[OpenUpdate], work: Callable[[], Work]) -> None:
        if updates:
            _Scan(updates, self._layout, work).run()

    def _judge(self, updates: Sequence[OpenUpdate]) -> list[Accepted]:
        """Return the good ones of updates that were read to their ends."""
        judged = [self._judged(update) for update in updates]
        return [one for one in judged if one is not None]

    def _judged(self, update: OpenUpdate) -> Accepted | None:
        try:
            if update.errors:
                # The first tile's, as an update that is read in order would have shown it: a reason must not depend
                # on threads.
                raise update.errors[min(update.errors)]
            # Bytes after the last tensor would be a second message that nobody has checked.
            update.reader.require_end()
            return self._intake.passed(update.reference, update.facts, norm_of(update.squares))
        except UpdateError as error:
            self._intake.refuse(update.reference, error)
            return None

    def _after(self, updates: Sequence[OpenUpdate], following: Sequence[UpdateReference]) -> Standing:
        """Return room for the sum with these updates; a lane is carried on if the next update may be of it."""
        if not updates:
            return Standing()
        size, lane = self._layout.size, lane_of(updates[-1].reference.thing)
        # Only if the lane goes on is its partial sum needed beyond the window: else it costs a whole vector for
        # nothing.
        carried = any(lane_of(reference.thing) == lane for reference in following)
        room = np.empty(size, self._terms.dtype) if carried else None
        return Standing(np.empty(size, self._terms.dtype), room, lane if carried else None)


class _Scan:
    """One passage of a few threads through the updates."""

    def __init__(self, updates: Sequence[OpenUpdate], layout: Layout, work: Callable[[], Work]) -> None:
        self._updates = updates
        self._work = work
        # A model below one tile needs no more room than itself.
        self._room = min(TILE, layout.size)
        self._tiles = enumerate(layout.tiles(TILE))
        self._turns = [
            Lock() for _ in updates
        ]  # a thread has the update whose turn it holds, and takes the next before it lets go
        self._failure: BaseException | None = None

    def run(self) -> None:
        # One less than THREADS: the caller's own thread is the last.
        threads = [Thread(target=self._thread, name="scan", daemon=True) for _ in range(THREADS - 1)]
        for thread in threads:
            thread.start()
        self._thread()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            # Only here: raised in a thread, it would end that thread and leave the others waiting for its turns.
            raise self._failure

    def _thread(self) -> None:
        values, spare = (aligned(size, np.dtype(np.float32)) for size in (self._room, min(PIECE, self._room)))
        try:
            with np.errstate(all="ignore"):
                work = self._work()
                while self._tile(work, values, spare):
                    pass
        except BaseException as error:  # noqa: BLE001 - is raised again where all threads have ended
            self._failure = self._failure or error

    def _tile(self, work: Work, values: Floats, spare: Floats) -> bool:
        """Work through the next tile; whether there was one."""
        # The lock of the first update orders the tiles, too: who holds it takes the next tile.
        held: Lock | None = self._turns[0]
        self._turns[0].acquire()
        try:
            # Under the first lock, so that tiles are handed out in order and once.
            number, span = next(self._tiles, (0, None))
            if span is None or self._failure is not None:
                return False
            block = values[: span.stop - span.start]
            work.begin(span)
            # Hand over hand: the next update is held before this one is let go, so no thread overtakes another, and
            # each update's bytes are read in order.
            for position, update in enumerate(self._updates, start=1):
                is_read = self._read(update, number, block)
                following = self._turns[position] if position < len(self._turns) else None
                if following is not None:
                    following.acquire()
                self._turns[position - 1].release()
                held = following
                # After the next thread was let in: checking and adding run side by side, reading does not.
                if is_read and self._check(update, number, block, spare):
                    work.take(update, block)
            work.end()
            return True
        # A thread that fails must let go, or the others wait for ever.
        finally:
            if held is not None:
                held.release()

    def _read(self, update: OpenUpdate, number: int, values: Floats) -> bool:
        # A bad update's stream is at an unknown place: nothing after its first error is read.
        if update.errors:
            return False
        try:
            update.reader.fill(values)
        except UpdateError as error:
            update.errors[number] = error
        # Another thread may have noted an error of another tile; this tile's values are good all the same.
        return number not in update.errors

    def _check(self, update: OpenUpdate, number: int, values: Floats, spare: Floats) -> bool:
        try:
            update.squares.append(sum_of_squares(values, spare))
        except UpdateError as error:
            update.errors[number] = error
        return number not in update.errors


class _Nothing:
    """Work that only has the updates validated."""

    def begin(self, span: slice) -> None:
        pass

    def take(self, update: OpenUpdate, values: Floats) -> None:
        pass

    def end(self) -> None:
        pass


class _Spooling:
    """Work that stores the updates."""

    def __init__(self, spool: StoredMatrix) -> None:
        self._spool = spool
        self._start = 0

    def begin(self, span: slice) -> None:
        self._start = span.start

    def take(self, update: OpenUpdate, values: Floats) -> None:
        self._spool.write(update.reference.key, values, self._start)

    def end(self) -> None:
        pass


class _Adding:
    """Work that writes the sum with a window beside the sum before it."""

    def __init__(
        self, before: Standing, after: Standing, weights: Mapping[str, tuple[int, float]], terms: Terms
    ) -> None:
        self._before = before
        self._after = after
        self._weights = weights  # lane and weight, by key
        self._terms = terms
        # Room for one tile where no whole vector is kept.
        self._room: Sums = aligned(TILE, terms.dtype)

    def begin(self, span: slice) -> None:
        before, after = self._before, self._after
        self._total = _part(after.total, span, self._room)
        self._partial = _part(after.partial, span, self._room)
        # The first window: there is no sum yet to copy.
        if before.total is None:
            self._total.fill(0)
        else:
            self._total[...] = before.total[span]
        if before.partial is not None:
            self._partial[...] = before.partial[span]
        self._lane = before.lane

    def take(self, update: OpenUpdate, values: Floats) -> None:
        lane, weight = self._weights[update.reference.key]
        # Updates come in lane order, so a lane is open exactly until one of another comes.
        if lane == self._lane:
            self._terms.add_scaled(self._partial, values, weight)
            return
        self._close_lane()
        self._terms.scaled(values, weight, self._partial)
        self._lane = lane

    def end(self) -> None:
        # Where the lane goes on in the next window, its partial sum is left open there.
        if self._after.partial is None:
            self._close_lane()

    def _close_lane(self) -> None:
        if self._lane is not None:
            np.add(self._total, self._partial, out=self._total)


def _part(vector: Sums | None, span: slice, room: Sums) -> Sums:
    return room[: span.stop - span.start] if vector is None else vector[span]
