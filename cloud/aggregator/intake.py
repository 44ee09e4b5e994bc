"""The way in: which updates are opened, in which order, and what becomes of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from cloud.aggregator.checks import Examiner
from cloud.aggregator.lanes import lane_order
from cloud.aggregator.scan import OpenUpdate
from cloud.aggregator.sources import UpdateReference, UpdateSource, open_ahead
from cloud.aggregator.strategies.base import Facts
from cloud.aggregator.vector import Layout
from fedgrass.errors import UpdateError
from fedgrass.protocol.report import QuarantinedEntry

TOGETHER = 64
"""Updates that are read side by side."""


@dataclass(frozen=True)
class Good:
    """An update that passed every check: its facts have the norm."""

    reference: UpdateReference
    facts: Facts


class Intake:
    """Opens updates some at a time, and keeps the reasons of those that are refused.

    Parameters
    ----------
    layout, source, examiner
        The model, where the updates are, and their judge.
    weight
        The strategy's: an update that it cannot weigh is refused before it is read.
    progress
        Told of the bytes of each update that is done with.
    """

    def __init__(
        self,
        layout: Layout,
        source: UpdateSource,
        examiner: Examiner,
        *,
        weight: Callable[[Facts], float],
        progress: Callable[[int], None],
    ) -> None:
        self.layout = layout
        self._source = source
        self._examiner = examiner
        self._weight = weight
        self._progress = progress
        self._refused: dict[str, QuarantinedEntry] = {}
        self.passes = 1  # how often the updates are read, for the progress

    def admit(self, references: Sequence[UpdateReference]) -> list[UpdateReference]:
        """Return those worth opening, in lane order."""
        ordered = sorted(references, key=lambda reference: (reference.thing, reference.key))
        return sorted(filter(self._passes, ordered), key=lane_order)

    def windows(self, references: Sequence[UpdateReference]) -> Iterator[tuple[list[OpenUpdate], str | None]]:
        """Yield updates with good headers, opened, some at a time, and the thing whose update comes after them."""
        opening = open_ahead(self._source, references)
        try:
            for start in range(0, len(references), TOGETHER):
                updates: list[OpenUpdate] = []
                try:
                    for reference, opener in itertools.islice(opening, TOGETHER):
                        self._open(reference, opener, updates)
                    behind = references[start + TOGETHER : start + TOGETHER + 1]
                    yield updates, behind[0].thing if behind else None
                finally:
                    for update in updates:
                        update.close()
        finally:
            opening.close()

    def settle(self, updates: Sequence[OpenUpdate]) -> list[Good]:
        """Close updates that were read to their ends, and return the good ones."""
        good = []
        for update in updates:
            update.close()
            if update.error is not None:
                self.refuse(update.reference, update.error)
            else:
                good.append(Good(update.reference, update.facts.measured(update.norm)))
                self._progress(update.reference.bytes // self.passes)
        return good

    def reopen(self, updates: list[OpenUpdate]) -> None:
        """Drop the bad ones from the list and open the others once more.

        All bad ones of a window are found in one reading, so it is read twice at most: an attacker with many cannot make it more.
        """
        good = self.settle(updates)
        updates.clear()
        for reference, opener in open_ahead(self._source, [one.reference for one in good]):
            self._open(reference, opener, updates)

    def refuse(self, reference: UpdateReference, error: UpdateError) -> None:
        """Keep an update's refusal, and go on with the next."""
        # What a hostile header holds may not be encodable.
        detail = str(error)[:500].encode("utf-8", "backslashreplace").decode()
        self._refused[reference.key] = QuarantinedEntry(
            thing=reference.thing,
            key=reference.key,
            etag=reference.etag,
            bytes=reference.bytes,
            reason=error.code,
            detail=detail,
            late_for=reference.round,
        )
        self._progress(reference.bytes)

    @property
    def refused(self) -> Sequence[QuarantinedEntry]:
        """All refusals so far."""
        return list(self._refused.values())

    def _passes(self, reference: UpdateReference) -> bool:
        try:
            self._examiner.check_reference(reference)
        except UpdateError as error:
            self.refuse(reference, error)
            return False
        return True

    def _open(self, reference: UpdateReference, opener: Callable[[], BinaryIO], into: list[OpenUpdate]) -> None:
        try:
            stream = opener()
        except UpdateError as error:
            self.refuse(reference, error)
            return
        try:
            update = OpenUpdate(reference, stream, self.layout, self._examiner)
            self._weight(update.facts)
            into.append(update)
        except UpdateError as error:
            stream.close()
            self.refuse(reference, error)
