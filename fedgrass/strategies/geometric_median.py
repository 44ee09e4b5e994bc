"""The geometric median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.strategies.base import RobustOptions, RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.update.codecs import Floats


# Change of the largest share below which the search is over.
_STILL = 1e-12


@dataclass(frozen=True)
class GeometricMedian(RobustStrategy):
    """The point whose distances to all updates have the smallest sum, by smoothed Weiszfeld steps.

    Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022, https://arxiv.org/abs/1912.13445. The steps need
    scalar products only, so the updates are read twice whatever the number of steps.
    """

    class Options(RobustOptions):
        """Of the search."""

        iterations: int = Field(default=100, ge=1, le=10_000, description="Weiszfeld steps at most")

    options: Options

    def rule(self, attackers: float) -> Combination:  # noqa: ARG002 - it withstands up to half
        """Return the rule."""
        return GeometricMedianRule(self.options.iterations)


@dataclass(frozen=True)
class GeometricMedianRule:
    """The rule; `GeometricMedian` says what it does."""

    iterations: int = 100
    smoothing: float = 1e-6

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the point, which is a weighted mean of the rows."""
        import numpy as np

        from fedgrass.strategies.arithmetic.products import scalar_products, weighted_mean

        products = scalar_products(rows)
        count = len(products)
        # It starts at the mean.
        shares = np.full(count, 1 / count)
        # Where the point meets an update its distance is 0: the floor keeps its weight finite, in the scale of these
        # updates.
        floor = self.smoothing * float(np.sqrt(products.diagonal().max(initial=0.0))) or 1.0
        for _ in range(self.iterations):
            along = products @ shares
            squares = np.maximum(products.diagonal() - 2 * along + shares @ along, 0)
            # Weiszfeld: the next point is the mean weighted by one over the distance.
            weights = 1 / np.maximum(np.sqrt(squares), floor)
            following = weights / weights.sum()
            moved = np.abs(following - shares).max()
            shares = following
            if moved < _STILL:
                break
        return weighted_mean(rows, shares, out)


strategy = GeometricMedian
