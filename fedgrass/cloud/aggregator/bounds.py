"""Bounds that a round's accepted updates set for one another: how much a claim counts, and how far one can pull.

A bound by the cohort refuses nobody, unless the settings ask for it: whether an update is good depends on that update alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from fedgrass.cloud.aggregator.arithmetic import UNIT
from fedgrass.cloud.aggregator.screening import Accepted
from fedgrass.errors import UpdateError
from fedgrass.protocol.check_settings import Checks
from fedgrass.strategies.arithmetic.clipping import ClipToMedian, median_norm
from fedgrass.strategies.arithmetic.interfaces import ClaimWeighting, Clip, UpdateMetadata, Weighting
from fedgrass.strategies.arithmetic.weighting import EqualWeighting
from fedgrass.strategies.base import Method, WeightedMean


@dataclass(frozen=True)
class Counted:
    """An accepted update as it counts: ``facts`` with bounded examples and norm, ``factor`` scales its values down."""

    good: Accepted
    facts: UpdateMetadata
    factor: float = 1.0


@dataclass(frozen=True)
class Bounds:
    """The bounds of a round. ``clip`` is the strategy's own, or else that of the settings."""

    method: Method
    checks: Checks

    @property
    def clip(self) -> Clip | None:
        """What longer updates are scaled down to."""
        factor = self.checks.clip_norm_over_median
        return self.method.clip or (ClipToMedian(factor) if factor > 0 else None)

    @property
    def weighting(self) -> Weighting:
        """How much each update counts; before a robust rule all count alike."""
        return self.method.weighting if isinstance(self.method, WeightedMean) else EqualWeighting()

    def too_long(self, good: Sequence[Accepted]) -> dict[str, UpdateError]:
        """Return, by key, the updates that the settings refuse because others are much shorter."""
        factor = self.checks.max_norm_over_median
        bound = factor * median_norm([one.norm for one in good])
        # A median of 0 is that of devices that learnt nothing: nobody is long beside it. One update has nobody to be
        # compared with.
        if bound == 0 or len(good) == 1:
            return {}
        return {
            one.reference.key: UpdateError(
                "norm_exceeded",
                f"the difference's L2 norm is {one.norm:.6g}; {factor:g} times the cohort's median is {bound:.6g}",
            )
            for one in good
            if one.norm > bound
        }

    def counted(self, good: Sequence[Accepted]) -> list[Counted]:
        """Return how each of the updates counts, given that these are all."""
        if not good:
            return []
        factor = self.checks.max_examples_over_median
        # The lower of two middle values: half of the cohort must claim so much before it counts.
        most = max(1, int(factor * median_low([one.facts.num_examples for one in good])))
        clip = self.clip
        # Of all good updates, before any is scaled: the clip is by the median of what was sent.
        bound = clip.bound([one.norm for one in good]) if clip else 0.0
        ages: dict[str, list[int]] = {}
        for one in good:
            # A device with late updates has several, and they share what it counts.
            ages.setdefault(one.facts.thing, []).append(one.facts.age)
        claims = [one.facts for one in good]
        # Below 1 a bound would call the median itself a lie.
        if factor > 0 and isinstance(weighting := self.weighting, ClaimWeighting):
            claims = list(weighting.believed(claims, max(1.0, factor)))
        found = []
        for one, facts in zip(good, claims, strict=True):
            # Only where somebody has more than one: the usual cohort is left as it is.
            if len(ages) < len(good) and len(ages[facts.thing]) > 1:
                facts = replace(facts, ages=tuple(sorted(ages[facts.thing])))
            if factor > 0 and facts.num_examples > most:
                facts = replace(facts, num_examples=most)
            # After the caps on examples, which change the weight; this changes the values.
            norm = one.norm
            if 0 < bound < norm:
                found.append(Counted(one, facts.measured(bound), bound / norm))
            else:
                found.append(Counted(one, facts))
        return found

    def weight(self, facts: UpdateMetadata, factor: float = 1.0) -> float:
        """Return what an update's values are multiplied by in the sum.

        Raises
        ------
        UpdateError
            Coded ``missing_metric``.
        """
        # The unit is divided out again where the sum is complete; a power of two costs no rounding.
        return self.weighting.weight(facts) * factor * UNIT
