"""From the updates to one difference: the weighted mean as a stream, other combinations by way of the scratch disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cloud.aggregator.checks import Examiner
from cloud.aggregator.intake import Good, Intake
from cloud.aggregator.lanes import LANES, lane_of, lane_order
from cloud.aggregator.scan import OpenUpdate, Tiles, scan
from cloud.aggregator.sources import UpdateReference
from cloud.aggregator.spool import Spool
from cloud.aggregator.strategies.base import Clip, Combine, Facts, Noise, Strategy
from cloud.aggregator.strategies.clip import ClipToNorm
from cloud.aggregator.strategies.statistics import Statistics
from cloud.aggregator.strategies.weigh import Equally
from cloud.aggregator.summation import LaneSum, Sums
from fedgrass.bundle import Bundle
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.report import QuarantinedEntry
from fedgrass.update.codecs import Floats

_UNIT = 2.0**-40
"""Weights are taken in this unit, a power of two: so the sum of the largest finite values does not overflow."""


@dataclass(frozen=True)
class Found:
    """What became of some updates."""

    good: Sequence[Good]
    refused: Sequence[QuarantinedEntry]


@dataclass(frozen=True)
class Combined:
    """The difference that the good updates make, and the share of each; None if there were too few."""

    found: Found
    difference: Floats | None = None
    shares: Sequence[float] = ()


class Share(Protocol):
    """The instances of a job, seen from one of them."""

    @property
    def own(self) -> Collection[int]:
        """The lanes of this instance, in order; the first instance's are the first lanes."""
        ...

    def exchange(self, found: Found) -> Found:
        """Tell the others of one's own updates, and return what all instances found."""
        ...

    def give(self, lane: int, total: Sums, found: Found) -> None:
        """Leave a lane's sum for the first instance."""
        ...

    def add(self, lane: int, total: Sums) -> Found:
        """Wait for another instance's lane, add its sum to the total, and return what its instance found."""
        ...


def with_noise(strategy: Strategy, noise: Noise | None) -> Strategy:
    """Return the strategy as central privacy needs it: every update clipped, and all counted alike.

    Raises
    ------
    ConfigurationError
        If the strategy is no mean: how much one device can change it is not known then.
    """
    if noise is None:
        return strategy
    if strategy.combine is not None:
        raise ConfigurationError(f"strategy {strategy.name!r}: central privacy needs a mean, such as fedavg")
    return replace(strategy, weigh=Equally(), clip=ClipToNorm(noise.clip_norm))


class Mean:
    """The weighted mean, in one pass if no weight depends on norms; otherwise a first pass finds the norms."""

    def __init__(
        self,
        strategy: Strategy,
        statistics: Statistics,
        intake: Intake,
        examiner: Examiner,
        share: Share | None,
        scratch: Path | None,
    ) -> None:
        self._statistics = statistics
        self._weigh = strategy.weigh
        self._clip = strategy.clip
        self._intake = intake
        self._examiner = examiner
        self._share = share
        self._scratch = scratch

    def of(self, candidates: Sequence[UpdateReference], min_updates: int) -> Combined:
        """Return the mean, on a job's first or only instance."""
        candidates, factors = self._surveyed(candidates)
        vector, good = self._sum(self._own(candidates), factors)
        if self._share is None and (odd := self._refuse_odd(good)):
            # Its norm was not known while it was added. Refused is refused: the median is not taken again without it.
            candidates = [reference for reference in candidates if reference.key not in odd]
            vector, good = self._sum(candidates, factors)
        found = Found(good, self._intake.refused)
        if self._share is not None:
            for lane in range(len(self._share.own), LANES):
                found = merged(found, self._share.add(lane, vector))
        good = sorted(found.good, key=lambda one: one.facts.thing)
        if len(good) < max(1, min_updates):
            return Combined(found)
        facts = [clipped(one, factors) for one in good]
        weights = [self._weigh.weight(one) for one in facts]
        with np.errstate(over="ignore"):
            self._statistics.scale(vector, self._weigh, facts, _UNIT)
            difference = vector.astype(np.float32, copy=False)
        total = sum(weights)
        return Combined(Found(good, found.refused), difference, [weight / total for weight in weights])

    def contribute(self, candidates: Sequence[UpdateReference], share: Share) -> None:
        """Leave this instance's lanes for the first instance."""
        candidates, factors = self._surveyed(candidates)
        by_lane: dict[int, list[UpdateReference]] = {lane: [] for lane in share.own}
        for reference in candidates:
            if (lane := lane_of(reference.thing)) in by_lane:
                by_lane[lane].append(reference)
        for lane, of_lane in by_lane.items():
            vector, good = self._sum(of_lane, factors)
            share.give(lane, vector, Found(good, self._intake.refused))

    def _surveyed(self, candidates: Sequence[UpdateReference]) -> tuple[Sequence[UpdateReference], Factors]:
        """Return what is good as far as norms tell, and the factors that clip it; without need nothing is read."""
        if self._clip is None and (self._share is None or not self._examiner.compares_norms):
            return candidates, {}
        self._intake.passes = 2
        good: list[Good] = []
        for updates, _ in self._intake.windows(self._own(candidates)):
            scan(updates, self._intake.layout, _read_all)
            good += self._intake.settle(updates)
        if self._share is not None:
            good = list(self._share.exchange(Found(good, self._intake.refused)).good)
        odd = self._refuse_odd(good)
        good = [one for one in good if one.reference.key not in odd]
        return sorted((one.reference for one in good), key=lane_order), clip_factors(self._clip, good)

    def _own(self, candidates: Sequence[UpdateReference]) -> Sequence[UpdateReference]:
        if self._share is None:
            return candidates
        return [reference for reference in candidates if lane_of(reference.thing) in self._share.own]

    def _refuse_odd(self, good: Sequence[Good]) -> set[str]:
        odd = self._examiner.too_long([one.facts.norm or 0.0 for one in good])
        for position, error in odd.items():
            self._intake.refuse(good[position].reference, error)
        return {good[position].reference.key for position in odd}

    def _sum(self, candidates: Sequence[UpdateReference], factors: Factors) -> tuple[Sums, list[Good]]:
        total = LaneSum(self._intake.layout, self._scratch)
        good: list[Good] = []
        for updates, following in self._intake.windows(candidates):
            weights = {u.reference.key: self._weight(u, factors) for u in updates}
            while not total.add(updates, weights, following=following):
                self._intake.reopen(updates)
            good += self._intake.settle(updates)
        return total.finish(), good

    def _weight(self, update: OpenUpdate, factors: Factors) -> float:
        return self._weigh.weight(update.facts) * factors.get(update.reference.key, 1.0) * _UNIT


def _read_all(tiles: Tiles) -> None:
    for _, blocks in tiles:
        for _ in blocks:
            pass


def combine(
    combination: Combine,
    clip: Clip | None,
    base: Bundle,
    intake: Intake,
    examiner: Examiner,
    candidates: Sequence[UpdateReference],
    min_updates: int,
    scratch: Path | None,
) -> Combined:
    """Combine updates that must be seen all at once."""
    good: list[Good] = []
    with Spool(base, intake.layout, scratch) as spool:
        for updates, _ in intake.windows(sorted(candidates, key=lambda reference: reference.thing)):
            spool.add(updates)
            good += intake.settle(updates)
        for position, error in examiner.too_long([one.facts.norm or 0.0 for one in good]).items():
            intake.refuse(good[position].reference, error)
        refused = {entry.key for entry in intake.refused}
        good = [one for one in good if one.reference.key not in refused]
        found = Found(good, intake.refused)
        if len(good) < max(1, min_updates):
            return Combined(found)
        factors = clip_factors(clip, good)
        spool.choose([(one.reference.key, clipped(one, factors), factors.get(one.reference.key, 1.0)) for one in good])
        difference = np.empty(intake.layout.size, np.float32)
        shares = combination.combine(spool, difference)
    return Combined(found, difference, shares)


def merged(one: Found, other: Found) -> Found:
    """Return both together; what every instance refused by itself is there once."""
    refused = {entry.key: entry for entry in (*one.refused, *other.refused)}
    return Found([*one.good, *other.good], list(refused.values()))


Factors = Mapping[str, float]
"""By key, what clipping multiplies an update by; those that are not there are short enough."""


def clip_factors(clip: Clip | None, good: Sequence[Good]) -> Factors:
    """Return the factors of the updates that are longer than the bound."""
    if clip is None or not good:
        return {}
    bound = clip.bound([one.facts.norm or 0.0 for one in good])
    return {one.reference.key: bound / norm for one in good if (norm := one.facts.norm or 0.0) > bound}


def clipped(one: Good, factors: Factors) -> Facts:
    """Return the facts with the norm as clipped."""
    factor = factors.get(one.reference.key)
    return one.facts if factor is None else one.facts.measured((one.facts.norm or 0.0) * factor)
