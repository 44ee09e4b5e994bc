"""The core: a stream of untrusted updates in, one set of parameters out, in memory that their number does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from fedgrass.bundle import PARAMETERS, Bundle, Parameters
from fedgrass.cloud.aggregator.bounds import Bounds, Counted
from fedgrass.cloud.aggregator.combination import Mean, PartialSums, combine, with_noise
from fedgrass.cloud.aggregator.group_means import GroupMeans
from fedgrass.cloud.aggregator.masked_sum import Masked, MaskedMean, require_sums
from fedgrass.cloud.aggregator.screening import Screening
from fedgrass.cloud.aggregator.sources import UpdateReference, UpdateSource
from fedgrass.cloud.aggregator.validation import Expected, UpdateValidator
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.protocol.report import QuarantinedEntry, UpdateEntry
from fedgrass.strategies.arithmetic.interfaces import Continued, Noise, RoundOptimizer, ServerOptimizer, State
from fedgrass.strategies.arithmetic.server import Step
from fedgrass.strategies.arithmetic.statistics import Statistics
from fedgrass.strategies.base import Method, RobustRule, Strategy, WeightedMean
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Aggregation:
    """The result of an aggregation. ``parameters`` is None if too few updates passed, or if there is a ``problem``.

    ``state`` is the server optimizer's: it belongs to these parameters, and the next round starts from it. ``problem`` says why
    there is no model although there were enough: the sum, the step or the new model is ``not_finite``, or the strategy declined.
    ``note`` is what a person should know of the model, if anything.
    """

    parameters: Parameters | None
    updates: tuple[UpdateEntry, ...]
    quarantined: tuple[QuarantinedEntry, ...]
    state: State = field(default_factory=dict)
    problem: str = ""
    not_finite: bool = False
    note: str = ""

    @property
    def bytes_read(self) -> int:
        """Bytes of the updates that were used."""
        return sum(entry.bytes for entry in self.updates)


@dataclass(frozen=True)
class AggregationOptions:
    """Options of an aggregation, besides the updates and the strategy.

    Attributes
    ----------
    min_updates
        Good updates without which there is no result.
    devices
        How many devices there are, asked or not, for strategies whose devices keep state; 0 if none but those who sent.
    state
        The server optimizer's, as the round that made the base left it; vectors of all parameters in the manifest's order.
    noise
        Central privacy: clips every update, counts all alike, and adds noise to their mean.
    noisy
        Whether the updates have noise on them: variances of statistics are held up then, as with ``noise``.
    share
        The job's instances, if there are several; this must be the first. Others call `contribute`.
    masked
        The round's masks, with secure aggregation: the updates' sum is opened by the helpers.
    scratch
        Folder for temporary files, if the strategy must see all updates at once: 4 bytes per parameter and update.
    progress
        Told of the bytes of each update that is done with.
    failures
        Why devices that were asked sent nothing, for a strategy that wants to know; refused updates are added.
    number
        The round, as a strategy that goes on counts it; None: as the updates' headers do.
    """

    min_updates: int = 1
    devices: int = 0
    state: State | None = None
    noise: Noise | None = None
    noisy: bool = False
    share: PartialSums | None = None
    masked: Masked | None = None
    scratch: Path | None = None
    progress: Callable[[int], None] = lambda _: None
    failures: Sequence[str] = ()
    number: int | None = None


def aggregate(
    base: Bundle,
    source: UpdateSource,
    references: Sequence[UpdateReference],
    strategy: Strategy,
    expected: Expected,
    options: AggregationOptions | None = None,
) -> Aggregation:
    """Aggregate the updates that pass validation.

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
    options
        What is not the same in every round or on every machine; the defaults of `AggregationOptions` if not given.

    Returns
    -------
    Aggregation
        The next parameters, in the base's dtypes and shapes, and what became of each update.

    Raises
    ------
    TransferError
        If the storage fails. A bad update raises nothing: it is quarantined.
    AggregationError
        If the updates are too few for the strategy, or the helpers for the masks (`HelpersMissingError`).
    ConfigurationError
        If the strategy does not go with ``noise``.
    """
    options = options or AggregationOptions()
    noise, strategy = options.noise, strategy.for_optimizer(base.manifest.optimizer)
    method = with_noise(strategy, noise)
    # The order below is the contract: list, open, screen, add, combine, step. An update is refused before its values
    # reach a sum, so nothing is ever subtracted again (docs/decisions/0043).
    bounds = Bounds(method, expected.checks)
    layout = Layout.of(base.manifest)
    statistics = Statistics.of(base.manifest, noisy=options.noisy or noise is not None)
    screening = Screening(layout, source, UpdateValidator(expected), weight=bounds.weight, progress=options.progress)
    candidates = screening.admit(references)
    # Set only for a robust rule that keeps state from round to round; every other state is the server optimizer's.
    continued: Continued | None = None
    if options.masked is not None:
        require_sums(strategy, options.masked.task.groups)
        groups = GroupMeans(bounds, base, screening, options.scratch)
        combined = MaskedMean(options.masked, screening, noise, groups).of(candidates, options.min_updates)
    elif isinstance(method, RobustRule):
        if strategy.keeps_state:
            continued = cast("Continued", method.combination)
            # Copied, because the rule may write to it, and a job that is run again must start from the same state.
            continued.round, continued.state = options.number or expected.round or 1, dict(options.state or {})
            continued.failures = options.failures
        combined = combine(
            method.combination, bounds, base, screening, candidates, options.min_updates, options.scratch
        )
    else:
        combined = Mean(bounds, statistics, screening, options.share, noise).of(candidates, options.min_updates)
    # Too few updates: none has a share, and the report still lists each with its facts.
    shares = combined.shares or [0.0] * len(combined.counted)
    # Sorted by name, so that the report does not depend on lanes, threads or instances.
    used = sorted(map(_entry, combined.counted, shares), key=lambda entry: (entry.thing, entry.key))
    refused = tuple(sorted(combined.found.refused, key=lambda entry: (entry.thing, entry.key)))
    if combined.difference is None:
        return Aggregation(None, tuple(used), refused, problem=combined.declined)
    # What is not finite must not become a model: the round fails with the reason, and the base stays.
    try:
        server = _server(method, combined.counted, options.devices)
        vector, following = _step(base, layout, statistics, server, combined.difference, options.state or {})
    except _NotFiniteError as error:
        return Aggregation(None, tuple(used), refused, problem=str(error), not_finite=True)
    following = following if continued is None else continued.state
    return Aggregation(_whole(base, layout.unflatten(vector)), tuple(used), refused, following, note=combined.note)


def _whole(base: Bundle, shared: Parameters) -> Parameters:
    """Return a model's parameters: those that do not travel are the base's in every model."""
    if base.manifest.shares_all:
        return shared
    # Updates carry no local parameters, so the vector has none to give back.
    stored = base.parameters()
    return {name: shared.get(name, value) for name, value in stored.items()}


def contribute(
    base: Bundle,
    source: UpdateSource,
    references: Sequence[UpdateReference],
    strategy: Strategy,
    expected: Expected,
    share: PartialSums,
    *,
    noise: Noise | None = None,
) -> None:
    """Sum this instance's lanes, and leave the sums for the first instance.

    Parameters
    ----------
    base
        The model that the updates are differences from.
    source, references
        Where the updates are, and which; all of the round's, not only this instance's.
    strategy
        How they are combined; nothing is done for one that must see all updates at once.
    expected
        What an update must be.
    share
        This instance's place among the job's.
    noise
        Central privacy, as of `AggregationOptions`.

    Raises
    ------
    TransferError
        If the storage fails.
    """
    if strategy.needs_all:
        return  # it takes all updates in one place
    bounds = Bounds(with_noise(strategy.for_optimizer(base.manifest.optimizer), noise), expected.checks)
    screening = Screening(Layout.of(base.manifest), source, UpdateValidator(expected), weight=bounds.weight)
    Mean(bounds, Statistics.of(base.manifest), screening, share, noise).contribute(screening.admit(references), share)


def _server(method: Method, counted: Sequence[Counted], devices: int) -> ServerOptimizer:
    """Return the round's server optimizer."""
    server = method.server if isinstance(method, WeightedMean) else Step()
    return server.in_round([one.facts for one in counted], devices) if isinstance(server, RoundOptimizer) else server


class _NotFiniteError(Exception):
    """Something that is to become the next model is not finite."""


def _step(
    base: Bundle, layout: Layout, statistics: Statistics, server: ServerOptimizer, difference: Floats, earlier: State
) -> tuple[Floats, State]:
    """Return the next parameters, in the place of the difference, and the server optimizer's new state."""
    # Copies: the caller's state belongs to the base, and the step below overwrites.
    state = {slot: earlier[slot].copy() if slot in earlier else np.zeros_like(difference) for slot in server.slots}
    # Overflows are looked for below, tile by tile; NumPy's warnings would only repeat them on stderr.
    with np.errstate(all="ignore"):
        # One tile of the base at a time: reading the base whole would add the size of the model to the peak of memory.
        for span, values in layout.base_tiles(base.path(PARAMETERS), _BLOCK):
            tile = {slot: vector[span] for slot, vector in state.items()}
            _require_finite(difference[span], "the sum of the updates is not finite")
            statistics.step(server, span, values, difference[span], tile)
            for slot, vector in tile.items():
                _require_finite(vector, f"the server optimizer's {slot} is not finite")
            # float16 models overflow here first: 65,504 is all that the dtype holds.
            new = difference[span].astype(values.dtype, copy=False)
            _require_finite(new, f"the new model is not finite, or beyond what {values.dtype} holds")
    return difference, state


# Scalars of a tile: 512 KiB of float32, which stay in a core's cache.
_BLOCK = 1 << 17


def _require_finite(values: Array, problem: str) -> None:
    # What is not finite makes the sum so too; only where finite values are too large to be added is each looked at.
    if not np.isfinite(np.add.reduce(values)) and not np.isfinite(values).all():
        raise _NotFiniteError(
            f"{problem}: nothing was made of it. Bound the updates: checks.max_norm refuses long ones"
        )


def _entry(counted: Counted, weight: float) -> UpdateEntry:
    reference, facts = counted.good.reference, counted.facts
    return UpdateEntry(
        thing=facts.thing,
        key=reference.key,
        etag=reference.etag,
        bytes=reference.bytes,
        num_examples=facts.num_examples,
        weight=weight,
        norm=float(f"{counted.good.norm:.6g}"),
        # As the device said them, not as bounded: the report is the record of claims.
        metrics=dict(counted.good.facts.metrics),  # as it was said
        late_for=reference.round,
        age=facts.age,
    )
