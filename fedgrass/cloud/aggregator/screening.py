"""Screening of updates: which are opened, in which order, and the one place where they are refused."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO

from fedgrass.cloud.aggregator.lanes import lane_order
from fedgrass.cloud.aggregator.sources import UpdateReference, UpdateSource, open_ahead
from fedgrass.cloud.aggregator.validation import UpdateValidator
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.errors import UpdateError
from fedgrass.protocol.report import QuarantinedEntry
from fedgrass.strategies.arithmetic.interfaces import UpdateMetadata
from fedgrass.update.decoded import DecodedUpdate
from fedgrass.update.reader import UpdateForm, UpdateReader

WeightOf = Callable[[UpdateReference, UpdateMetadata], float]
"""What an update's values are multiplied by in a sum."""


@dataclass(frozen=True)
class Accepted:
    """An update that passed every check: its facts have the norm."""

    reference: UpdateReference
    facts: UpdateMetadata

    @property
    def norm(self) -> float:
        """The L2 norm of its difference."""
        return self.facts.norm or 0.0


class Screening:
    """Opens updates, and keeps the reasons of those that are refused; several threads may use it.

    Parameters
    ----------
    layout, source, examiner
        The model, where the updates are, and their judge.
    weight
        The strategy's: an update that it cannot weigh is refused before it is read.
    progress
        Told of the bytes of each update when it is judged first.
    """

    def __init__(
        self,
        layout: Layout,
        source: UpdateSource,
        examiner: UpdateValidator,
        *,
        weight: Callable[[UpdateMetadata], float],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.layout = layout
        self.examiner = examiner
        self._form = UpdateForm(layout.parameters)
        self._source = source
        self._weight = weight
        self._progress = progress
        # Keys whose bytes the progress counted: updates that are read twice count once.
        self._judged: set[str] = set()
        self._refused: dict[str, QuarantinedEntry] = {}
        self._lock = Lock()

    def admit(self, references: Sequence[UpdateReference]) -> list[UpdateReference]:
        """Return those worth opening, in lane order: by what storage says of them."""
        # Checked in order of names, so that which of two updates of one thing is the duplicate does not depend on the
        # listing.
        ordered = sorted(references, key=lambda reference: (reference.thing, reference.key))
        return sorted(filter(self._admits, ordered), key=lane_order)

    def openers(
        self, references: Sequence[UpdateReference]
    ) -> Generator[tuple[UpdateReference, Callable[[], BinaryIO]], None, None]:
        """Yield each reference, in order, with what opens it."""
        return open_ahead(self._source, references)

    def begin(
        self, reference: UpdateReference, stream: BinaryIO | DecodedUpdate
    ) -> tuple[UpdateReader | DecodedUpdate, UpdateMetadata]:
        """Read and check the header of an update; its values are next."""
        reader = (
            stream
            if isinstance(stream, DecodedUpdate)
            else UpdateReader(stream, file_bytes=reference.bytes, parameters=self._form)
        )
        facts = self.examiner.check_header(reference, reader.header)
        # For its refusal only, such as of a missing metric: the weight itself is asked for again when the cohort's
        # bounds are known.
        self._weight(facts)
        return reader, facts

    def passed(self, reference: UpdateReference, facts: UpdateMetadata, norm: float) -> Accepted:
        """Check the norm of an update of which everything else was good, and accept the update.

        Parameters
        ----------
        reference
            The update.
        facts
            What its header says.
        norm
            L2 norm of its difference.

        Returns
        -------
        Accepted
            The update with its measured norm.

        Raises
        ------
        UpdateError
            If the norm exceeds the fixed bound.
        """
        self.examiner.check_norm(norm)
        self._tell(reference)
        return Accepted(reference, facts.measured(norm))

    def refuse(self, reference: UpdateReference, error: UpdateError) -> None:
        """Keep an update's refusal; others go on."""
        # What a hostile header holds may not be encodable.
        # At most 500 characters: the report must not grow with what a device writes into a header.
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
        self._tell(reference)

    @property
    def refused(self) -> Sequence[QuarantinedEntry]:
        """All refusals so far."""
        return list(self._refused.values())

    def _admits(self, reference: UpdateReference) -> bool:
        try:
            self.examiner.check_reference(reference)
        except UpdateError as error:
            self.refuse(reference, error)
            return False
        return True

    def _tell(self, reference: UpdateReference) -> None:
        with self._lock:
            if reference.key not in self._judged:
                self._judged.add(reference.key)
                self._progress(reference.bytes)
