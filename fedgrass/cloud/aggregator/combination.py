"""From the updates to one difference: the weighted mean as a stream, other combinations by way of the scratch disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.arithmetic import UNIT, Rounded, Terms, WholeSteps
from fedgrass.cloud.aggregator.bounds import Bounds, Counted
from fedgrass.cloud.aggregator.lanes import LANES, lane_of
from fedgrass.cloud.aggregator.privacy import BELOW
from fedgrass.cloud.aggregator.rows import Rows
from fedgrass.cloud.aggregator.screening import Accepted, Screening, WeightOf
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.stored_matrix import StoredMatrix
from fedgrass.cloud.aggregator.tiles import Tiles
from fedgrass.errors import ConfigurationError, DeclinedError, TransferError
from fedgrass.protocol.report import QuarantinedEntry
from fedgrass.strategies.arithmetic.clipping import ClipToNorm
from fedgrass.strategies.arithmetic.interfaces import Combination, Noise, Sums, UpdateMetadata
from fedgrass.strategies.arithmetic.statistics import Statistics
from fedgrass.strategies.arithmetic.weighting import EqualWeighting
from fedgrass.strategies.base import Method, Strategy, WeightedMean
from fedgrass.update.codecs import Floats

SMALL = 1 << 20
"""Scalars up to which an update is read whole (see `rows` beside this module), not tile by tile (`tiles`)."""


class Reading(Protocol):
    """A way to read updates. Nothing is added or returned before it was validated."""

    def measure(self, references: Sequence[UpdateReference]) -> list[Accepted]:
        """Validate updates; return the accepted ones, in order."""
        ...

    def spool(self, references: Sequence[UpdateReference], spool: StoredMatrix) -> list[Accepted]:
        """Validate updates and store them; return the accepted ones, in order."""
        ...

    def sum(self, references: Sequence[UpdateReference], weight: WeightOf) -> tuple[Sums, list[Accepted]]:
        """Return the weighted sum of the good ones among updates in lane order, and these."""
        ...

    def lanes(
        self, references: Sequence[UpdateReference], weight: WeightOf
    ) -> Iterator[tuple[int, Sums, list[Accepted]]]:
        """Yield the sum of each lane that has updates, in order."""
        ...


def reading(screening: Screening, terms: Terms | None = None) -> Reading:
    """Return the reader for a model of this size."""
    # Below a million scalars a whole update fits a few megabytes a thread, and tiles would cost more calls than they
    # save.
    return Rows(screening, terms) if screening.layout.size <= SMALL else Tiles(screening, terms)


@dataclass(frozen=True)
class Screened:
    """Updates that were screened: those accepted, and those refused."""

    good: Sequence[Accepted]
    refused: Sequence[QuarantinedEntry]


@dataclass(frozen=True)
class Combined:
    """The combined difference, how each accepted update counted, and its share; no difference if there were too few.

    ``declined`` says why the strategy made nothing of enough of them, ``note`` what else a person should know of the difference.
    """

    found: Screened
    counted: Sequence[Counted] = ()
    difference: Floats | None = None
    shares: Sequence[float] = ()
    declined: str = ""
    note: str = ""


class PartialSums(Protocol):
    """The instances of a job, seen from one of them."""

    @property
    def own(self) -> Collection[int]:
        """The lanes of this instance, in order; the first instance's are the first lanes."""
        ...

    def exchange(self, found: Screened) -> Screened:
        """Share this instance's findings with the others, and return everyone's."""
        ...

    def give(self, lane: int, total: Sums, found: Screened) -> None:
        """Leave a lane's sum for the first instance.

        Parameters
        ----------
        lane
            Number of the lane.
        total
            Its weighted sum.
        found
            Which of its updates are in the sum, and which were refused.
        """
        ...

    def add(self, lane: int, total: Sums) -> Screened:
        """Wait for another instance's lane, add its sum to the total, and return what its instance found."""
        ...


def with_noise(strategy: Strategy, noise: Noise | None) -> Method:
    """Return the strategy's arithmetic, with noise as central privacy needs it: every update clipped, and all counted alike.

    Raises
    ------
    ConfigurationError
        If the strategy is no mean: how much one device can change it is not known then. Or if it takes late updates: a device
        would count twice in a round.
    """
    if noise is None:
        return strategy.method
    if not isinstance(strategy.method, WeightedMean):
        raise ConfigurationError(f"strategy {strategy.name!r}: central privacy needs a mean, such as fedavg")
    if strategy.staleness > 0:
        raise ConfigurationError(
            f"strategy {strategy.name!r}: with central privacy a device counts once in a round, so late updates cannot be taken"
        )
    # Slightly below the clipping norm: the measured norm is rounded, and no update may exceed what the noise was made
    # for.
    return replace(strategy.method, weighting=EqualWeighting(), clip=ClipToNorm(noise.clip_norm * BELOW))


class Mean:
    """The weighted mean.

    What an update counts may depend on the others, which are not known before all were read. One instance adds them as their
    headers say; if the cohort's bounds then change what one counts, that sum is let go and another is made. Several instances
    measure first, tell each other what they found, and add when that is known.
    """

    def __init__(
        self,
        bounds: Bounds,
        statistics: Statistics,
        screening: Screening,
        share: PartialSums | None,
        noise: Noise | None = None,
    ) -> None:
        self._bounds = bounds
        self._statistics = statistics
        self._intake = screening
        self._noise = noise
        self._reading = reading(screening, Rounded() if noise is None else WholeSteps(noise.grid))
        self._share = share

    def of(self, candidates: Sequence[UpdateReference], min_updates: int) -> Combined:
        """Return the mean, on a job's first or only instance."""
        total, good = self._alone(candidates) if self._share is None else self._together(candidates, self._share)
        found = Screened(sorted(good.good, key=_by_name), good.refused)
        counted = self._bounds.counted(found.good)
        if len(counted) < max(1, min_updates):
            return Combined(found, counted)
        # Weights come from the facts as bounded, and only of those that count: the sum is not divided yet.
        facts = [one.facts for one in counted]
        difference = self._mean(total, facts)
        weights = [self._bounds.weighting.weight(one) for one in facts]
        whole = sum(weights)
        return Combined(found, counted, difference, [weight / whole for weight in weights])

    def _mean(self, total: Sums, facts: Sequence[UpdateMetadata]) -> Floats:
        """Return the mean that the sum gives, in place where possible."""
        with np.errstate(all="ignore"):
            if self._noise is not None:
                # One step: noise on the exact integers first, the division after. Dividing first would round off what
                # the noise hides.
                return self._noise.noised_mean(total, len(facts))
            self._statistics.scale(total, self._bounds.weighting, facts, UNIT)
            return total.astype(np.float32, copy=False)

    def contribute(self, candidates: Sequence[UpdateReference], share: PartialSums) -> None:
        """Leave this instance's lanes for the first instance."""
        kept, weight = self._agreed(candidates, share)
        left = list(share.own)
        wanted: dict[int, list[UpdateReference]] = {}
        for one in kept:
            wanted.setdefault(lane_of(one.thing), []).append(one)
        for lane, total, good in self._reading.lanes(kept, weight):
            # Between measuring and adding, an object could be replaced; the versions are pinned, but a folder has none.
            self._require_all(wanted[lane], good)
            # Lanes without updates are given as empty, because the first instance waits for every lane by number.
            while left[0] != lane:
                share.give(left.pop(0), _NONE, Screened((), self._intake.refused))
            share.give(left.pop(0), total, Screened(good, self._intake.refused))
        for lane in left:
            share.give(lane, _NONE, Screened((), self._intake.refused))

    def _alone(self, candidates: Sequence[UpdateReference]) -> tuple[Sums, Screened]:
        total, good = self._reading.sum(candidates, self._as_claimed)
        # An update's bounds depend on the cohort's medians, known only now that all were read.
        kept = self._refuse_odd(good)
        weight = self._by_cohort(kept)
        # As a rule nothing is bounded and nobody is odd: then the sum that was read along the way is the result, and
        # the updates are read once.
        if len(kept) == len(good) and all(
            weight(one.reference, one.facts) == self._as_claimed(one.reference, one.facts) for one in good
        ):
            return total, Screened(good, self._intake.refused)
        # Two sums at a time would double the memory.
        del total
        references = [one.reference for one in kept]
        # The second reading sees the bounds; the first one told which updates are good.
        total, again = self._reading.sum(references, weight)
        self._require_all(references, again)
        return total, Screened(again, self._intake.refused)

    def _together(self, candidates: Sequence[UpdateReference], share: PartialSums) -> tuple[Sums, Screened]:
        kept, weight = self._agreed(candidates, share)
        total, good = self._reading.sum(kept, weight)
        self._require_all(kept, good)
        found = Screened(good, self._intake.refused)
        # Its own lanes are in the sum already. The others follow in order of number, whoever sends first: order is part
        # of the result.
        for lane in range(len(share.own), LANES):
            found = merged(found, share.add(lane, total))
        return total, found

    def _agreed(
        self, candidates: Sequence[UpdateReference], share: PartialSums
    ) -> tuple[list[UpdateReference], WeightOf]:
        """Return this instance's updates, and what each counts, when all instances know of all."""
        own = [reference for reference in candidates if lane_of(reference.thing) in share.own]
        # Every instance measures before any adds: the bounds need the medians of all.
        measured = self._reading.measure(own)
        everything = share.exchange(Screened(measured, self._intake.refused))
        kept = self._refuse_odd(sorted(everything.good, key=_by_name))
        # Judged by all instances' updates together, so every instance drops the same ones.
        keys = {one.reference.key for one in kept}
        return [one.reference for one in measured if one.reference.key in keys], self._by_cohort(kept)

    def _refuse_odd(self, good: Sequence[Accepted]) -> list[Accepted]:
        """Return the updates that are not too long compared with the others; the median is not recomputed without these."""
        odd = self._bounds.too_long(good)
        for one in good:
            if one.reference.key in odd:
                self._intake.refuse(one.reference, odd[one.reference.key])
        return [one for one in good if one.reference.key not in odd]

    def _as_claimed(self, _reference: UpdateReference, facts: UpdateMetadata) -> float:
        return self._bounds.weight(facts)

    def _by_cohort(self, good: Sequence[Accepted]) -> WeightOf:
        counted = self._bounds.counted(good)
        weights = {one.good.reference.key: self._bounds.weight(one.facts, one.factor) for one in counted}
        return lambda reference, _: weights[reference.key]

    def _require_all(self, references: Sequence[UpdateReference], good: Sequence[Accepted]) -> None:
        keys = {one.reference.key for one in good}
        for reference in references:
            if reference.key not in keys:
                # Not a quarantine: an update that changes while it is read is a fault of the storage, and the round can
                # be run again.
                raise TransferError(
                    f"{reference.key}: was good when it was read first, and is not any more: something changes the updates "
                    "meanwhile. Nothing is lost: run again"
                )


_NONE: Floats = np.empty(0, np.float32)


def combine(
    combination: Combination,
    bounds: Bounds,
    base: Bundle,
    screening: Screening,
    candidates: Sequence[UpdateReference],
    min_updates: int,
    scratch: Path | None,
) -> Combined:
    """Combine updates that must be seen all at once, by way of a matrix on disk.

    Parameters
    ----------
    combination
        The robust rule.
    bounds
        Which updates are too long beside the others, and what each counts.
    base
        The model that the updates are differences from.
    screening
        Opens and validates each update.
    candidates
        The updates to open.
    min_updates
        Good updates without which there is no difference.
    scratch
        Folder for the matrix, 4 bytes per scalar and update; the system's temporary one if None.

    Returns
    -------
    Combined
        The difference, float32 of the model's size, with what each update weighed in it.

    Raises
    ------
    AggregationError
        If the good updates are too few for the rule.
    """
    with StoredMatrix(base, screening.layout, scratch) as spool:
        # A fixed order of rows: a rule that chooses among equals takes the first of them.
        good = sorted(reading(screening).spool(candidates, spool), key=_by_name)
        for key, error in (odd := bounds.too_long(good)).items():
            screening.refuse(next(one.reference for one in good if one.reference.key == key), error)
        good = [one for one in good if one.reference.key not in odd]
        counted = bounds.counted(good)
        found = Screened(good, screening.refused)
        # Before the matrix is read: with too few rows some rules have no answer at all.
        if len(good) < max(1, min_updates):
            return Combined(found, counted)
        # Rows of refused updates stay on disk and are never read: rewriting the file would cost more than its space.
        spool.choose([(one.good.reference.key, one.facts, one.factor) for one in counted])
        difference = np.empty(screening.layout.size, np.float32)
        # Only Flower's strategies ask for failures; they take them in `aggregate_fit`, as their server gives them.
        if hasattr(combination, "failures"):
            told = [f"{entry.reason}: {entry.detail}" for entry in screening.refused]
            combination.failures = (*combination.failures, *told)
        try:
            shares = combination.combine(spool, difference)
        except DeclinedError as error:
            return Combined(found, counted, declined=str(error))
    return Combined(found, counted, difference, shares)


def merged(one: Screened, other: Screened) -> Screened:
    """Return both together; what every instance refused by itself is there once."""
    # Every instance lists and refuses by name the same way, hence the dictionary by key.
    refused = {entry.key: entry for entry in (*one.refused, *other.refused)}
    return Screened([*one.good, *other.good], list(refused.values()))


def _by_name(one: Accepted) -> tuple[str, str]:
    return one.reference.thing, one.reference.key
