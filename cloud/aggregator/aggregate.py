"""The core: a stream of untrusted updates in, one set of parameters out, in memory that their number does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cloud.aggregator.checks import Examiner, Expected
from cloud.aggregator.combination import Mean, Share, combine, with_noise
from cloud.aggregator.intake import Good, Intake
from cloud.aggregator.scan import BLOCK
from cloud.aggregator.sources import UpdateReference, UpdateSource
from cloud.aggregator.strategies.base import Noise, ServerOptimizer, State, Strategy
from cloud.aggregator.strategies.statistics import Statistics
from cloud.aggregator.vector import Layout
from fedgrass.bundle import PARAMETERS, Bundle, Parameters
from fedgrass.protocol.report import QuarantinedEntry, UpdateEntry
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Aggregation:
    """What became of the updates. ``parameters`` is None if fewer than the minimum were good.

    ``state`` is the server optimizer's: it belongs to these parameters, and the next round starts from it.
    """

    parameters: Parameters | None
    updates: tuple[UpdateEntry, ...]
    quarantined: tuple[QuarantinedEntry, ...]
    state: State = field(default_factory=dict)

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
    state: State | None = None,
    noise: Noise | None = None,
    share: Share | None = None,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Aggregation:
    """Combine the good ones among the updates.

    The same updates give the same bytes, whatever bad ones lie among them, in whatever order they are listed, and however many
    instances share the work.

    Parameters
    ----------
    base
        The model that the updates are differences from.
    source, references
        Where the updates are, and which.
    strategy
        How they are combined.
    expected
        What an update must be.
    min_updates
        Good updates without which there is no result.
    state
        The server optimizer's, as the round that made ``base`` left it.
    noise
        Central privacy: clips every update, counts all alike, and adds noise to their mean.
    share
        The job's instances, if there are several; this must be the first. Others call `contribute`.
    scratch
        Folder for temporary files: up to 8 bytes per parameter, or 4 per parameter and update if the strategy must see all
        of them at once.
    progress
        Told of the bytes of each update that is done with.

    Raises
    ------
    TransferError
        If the storage fails. A bad update raises nothing: it is quarantined.
    AggregationError
        If the updates are too few for the strategy.
    ConfigurationError
        If the strategy does not go with ``noise``.
    """
    layout = Layout(base.manifest.parameters)
    statistics = Statistics.of(base.manifest)
    examiner = Examiner(expected)
    strategy = with_noise(strategy, noise)
    intake = Intake(layout, source, examiner, weight=strategy.weigh.weight, progress=progress)
    candidates = intake.admit(references)
    if strategy.combine is not None:
        combined = combine(strategy.combine, strategy.clip, base, intake, examiner, candidates, min_updates, scratch)
    else:
        combined = Mean(strategy, statistics, intake, examiner, share, scratch).of(candidates, min_updates)
    shares = combined.shares or [0.0] * len(combined.found.good)
    used = sorted(map(_entry, combined.found.good, shares), key=lambda entry: (entry.thing, entry.key))
    refused = tuple(sorted(combined.found.refused, key=lambda entry: (entry.thing, entry.key)))
    if combined.difference is None:
        return Aggregation(None, tuple(used), refused)
    if noise is not None:
        noise.add_noise(combined.difference, len(used))
    vector, following = _step(base, layout, statistics, strategy.server, combined.difference, state or {})
    return Aggregation(layout.unflatten(vector), tuple(used), refused, following)


def contribute(
    base: Bundle,
    source: UpdateSource,
    references: Sequence[UpdateReference],
    strategy: Strategy,
    expected: Expected,
    share: Share,
    *,
    noise: Noise | None = None,
    scratch: Path | None = None,
) -> None:
    """Do the part of an instance that is not the first; parameters as of `aggregate`."""
    if strategy.combine is not None:
        return  # it takes all updates in one place
    examiner = Examiner(expected)
    strategy = with_noise(strategy, noise)
    layout = Layout(base.manifest.parameters)
    statistics = Statistics.of(base.manifest)
    intake = Intake(layout, source, examiner, weight=strategy.weigh.weight, progress=lambda _: None)
    Mean(strategy, statistics, intake, examiner, share, scratch).contribute(intake.admit(references), share)


def _step(
    base: Bundle, layout: Layout, statistics: Statistics, server: ServerOptimizer, difference: Floats, earlier: State
) -> tuple[Floats, State]:
    """Return the next parameters, in the place of the difference, and the server optimizer's new state."""
    state = {slot: earlier[slot].copy() if slot in earlier else np.zeros_like(difference) for slot in server.slots}
    with np.errstate(all="ignore"):  # a result that is not finite is caught where the model is written
        for span, values in layout.base_tiles(base.path(PARAMETERS), BLOCK):
            tile = {slot: vector[span] for slot, vector in state.items()}
            statistics.step(server, span, values, difference[span], tile)
    return difference, state


def _entry(good: Good, weight: float) -> UpdateEntry:
    return UpdateEntry(
        thing=good.facts.thing,
        key=good.reference.key,
        etag=good.reference.etag,
        bytes=good.reference.bytes,
        num_examples=good.facts.num_examples,
        weight=weight,
        norm=good.facts.norm or 0.0,
        metrics=dict(good.facts.metrics),
        late_for=good.reference.round,
        age=good.facts.age,
    )
