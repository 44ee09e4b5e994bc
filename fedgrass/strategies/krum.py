"""Krum: the update that lies closest to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.strategies.base import RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Krum(RobustStrategy):
    """The update that lies closest to its neighbours.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.
    """

    def rule(self, attackers: float) -> Combination:
        """Return the rule."""
        return KrumRule(attackers)


@dataclass(frozen=True)
class KrumRule:
    """The mean of the ``chosen`` updates that lie closest to their neighbours; one of them is Krum, several Multi-Krum.

    ``chosen`` is a share of the updates; 0 takes one.
    """

    attackers: float
    chosen: float = 0.0

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the mean of the chosen."""
        import numpy as np

        from fedgrass.strategies.arithmetic.products import (
            attackers_among,
            krum_scores,
            scalar_products,
            squared_distances,
            weighted_mean,
        )

        count = len(rows.facts)
        # n ≥ 2f + 3, as in the paper.
        attackers = attackers_among(self.attackers, count, room=2, more=3)
        scores = krum_scores(squared_distances(scalar_products(rows)), attackers)
        # Stable: of equal scores the first row, on every processor.
        chosen = np.argsort(scores, kind="stable")[: max(1, round(self.chosen * count))]
        shares = np.zeros(count)
        shares[chosen] = 1 / len(chosen)
        return weighted_mean(rows, shares, out)


strategy = Krum
