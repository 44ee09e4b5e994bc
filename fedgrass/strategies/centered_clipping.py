"""Centered clipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.strategies.base import Positive, RobustOptions, RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class CenteredClipping(RobustStrategy):
    """The mean of the updates, each drawn towards it until it is no farther off than their median distance.

    Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021, https://arxiv.org/abs/2012.10333.
    It begins at the base itself, and the radius follows the cohort. Steps need scalar products only.
    """

    class Options(RobustOptions):
        """Of the steps."""

        radius: Positive = Field(
            default=1.0, description="Multiple of the median distance from which none pulls harder"
        )
        iterations: int = Field(default=5, ge=1, le=100, description="Steps of the centre")

    options: Options

    def rule(self, attackers: float) -> Combination:  # noqa: ARG002 - it withstands up to half
        """Return the rule."""
        return CenteredClippingRule(self.options.radius, self.options.iterations)


@dataclass(frozen=True)
class CenteredClippingRule:
    """The rule; `CenteredClipping` says what it does."""

    radius: float = 1.0
    iterations: int = 5

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the centre, which is a weighted mean of the rows and the base."""
        import numpy as np

        from fedgrass.strategies.arithmetic.products import scalar_products, weighted_mean

        # The row of zeros is the base itself, where the centre begins.
        products = scalar_products(rows, origin=True)
        count = len(products) - 1
        # The centre as a weighted mean of rows and origin: each step changes the weights only, and no vector is read.
        shares = np.zeros(count + 1)
        shares[count] = 1.0
        for _ in range(self.iterations):
            along = products @ shares
            # ‖x - c‖² for c = Σ s·x, from scalar products.
            squares = np.maximum(products.diagonal() - 2 * along + shares @ along, 0)[:count]
            distances = np.sqrt(squares)
            radius = self.radius * float(np.median(distances))
            steps = np.minimum(1.0, radius / np.maximum(distances, np.finfo(np.float64).tiny)) / count
            shares *= 1 - steps.sum()
            shares[:count] += steps
        return weighted_mean(rows, shares[:count], out)


strategy = CenteredClipping
