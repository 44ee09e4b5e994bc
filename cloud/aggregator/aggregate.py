"""The core: a stream of untrusted updates in, one set of parameters out, in memory that their number does not change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cloud.aggregator.checks import Examiner, Expected
from cloud.aggregator.sources import UpdateReference, UpdateSource, open_ahead
from cloud.aggregator.strategies import Strategy, Update
from cloud.aggregator.vector import Layout
from fedgrass.bundle import Bundle, Parameters
from fedgrass.errors import UpdateError
from fedgrass.protocol.report import QuarantinedEntry, UpdateEntry
from fedgrass.update.header import UpdateHeader


@dataclass(frozen=True)
class Aggregation:
    """What became of the updates. ``parameters`` is None if fewer than the minimum were good."""

    parameters: Parameters | None
    updates: tuple[UpdateEntry, ...]
    quarantined: tuple[QuarantinedEntry, ...]

    @property
    def bytes_read(self) -> int:
        """Bytes of the updates that were used."""
        return sum(entry.bytes for entry in self.updates)


def aggregate(
    base: Bundle,
    source: UpdateSource,
    references: Sequence[UpdateReference],
    strategy: Strategy,
    expected: Expected,
    *,
    min_updates: int = 1,
) -> Aggregation:
    """Combine the good ones among the updates; the same updates give the same bytes, whatever bad ones lie among them.

    Parameters
    ----------
    base
        The model that the updates are differences from.
    source, references
        Where the updates are, and which. They are taken in the order of their things' names.
    expected
        What an update must be.
    min_updates
        Good updates without which there is no result.

    Raises
    ------
    TransferError
        If the storage fails. A bad update raises nothing: it is quarantined.
    """
    layout = Layout(base.manifest.parameters)
    examiner = Examiner(expected, layout)
    strategy.start(layout.flatten(base.parameters()))
    used: list[UpdateEntry] = []
    quarantine = _Quarantine()
    candidates: list[UpdateReference] = []
    for reference in sorted(references, key=lambda reference: (reference.thing, reference.key)):
        with quarantine.of(reference):
            examiner.check_reference(reference)
            candidates.append(reference)
    for reference, opener in open_ahead(source, candidates):
        with quarantine.of(reference), opener() as stream:
            header, update = examiner.examine(reference, stream)
            strategy.add(update)
            used.append(_entry(reference, header, update))
    if len(used) < max(1, min_updates):
        return Aggregation(None, tuple(used), quarantine.in_order())
    result = strategy.finish()
    weighted = tuple(entry.model_copy(update={"weight": result.weights.get(entry.thing, 0.0)}) for entry in used)
    return Aggregation(layout.unflatten(result.vector), weighted, quarantine.in_order())


class _Quarantine:
    def __init__(self) -> None:
        self._entries: list[QuarantinedEntry] = []

    @contextmanager
    def of(self, reference: UpdateReference) -> Iterator[None]:
        """Keep an update's refusal, and go on with the next."""
        try:
            yield
        except UpdateError as error:
            # What a hostile header holds may not be encodable.
            detail = str(error)[:500].encode("utf-8", "backslashreplace").decode()
            self._entries.append(
                QuarantinedEntry(
                    thing=reference.thing, key=reference.key, bytes=reference.bytes, reason=error.code, detail=detail
                )
            )

    def in_order(self) -> tuple[QuarantinedEntry, ...]:
        return tuple(sorted(self._entries, key=lambda entry: (entry.thing, entry.key)))


def _entry(reference: UpdateReference, header: UpdateHeader, update: Update) -> UpdateEntry:
    return UpdateEntry(
        thing=reference.thing,
        key=reference.key,
        etag=reference.etag,
        bytes=reference.bytes,
        num_examples=update.num_examples,
        weight=0.0,
        norm=float(f"{update.norm:.6g}"),  # further digits depend on the processor
        metrics=dict(header.metrics),
    )
