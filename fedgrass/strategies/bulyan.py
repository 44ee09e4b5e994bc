"""Bulyan: updates chosen by Krum, then the middle of each coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.strategies.base import RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.strategies.arithmetic.products import Doubles
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Bulyan(RobustStrategy):
    """Krum again and again to choose n - 2f updates, then of each coordinate the mean of the n - 4f values nearest the median.

    El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, https://arxiv.org/abs/1802.07927
    """

    def rule(self, attackers: float) -> Combination:
        """Return the rule."""
        return BulyanRule(attackers)


@dataclass(frozen=True)
class BulyanRule:
    """The rule; `Bulyan` says what it does."""

    attackers: float

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the means."""
        import numpy as np

        from fedgrass.strategies.arithmetic.columns import in_order, over_tiles
        from fedgrass.strategies.arithmetic.products import (
            attackers_among,
            krum_scores,
            scalar_products,
            squared_distances,
        )

        count = len(rows.facts)
        # n ≥ 4f + 3, as in the paper.
        attackers = attackers_among(self.attackers, count, room=4, more=3)
        left = list(range(count))
        distances = squared_distances(scalar_products(rows))
        chosen: list[int] = []
        for _ in range(count - 2 * attackers):
            # Scored again without those chosen, which would pull the rest towards themselves.
            scores = krum_scores(distances[np.ix_(left, left)], attackers)
            chosen.append(left.pop(int(scores.argmin())))
        # In the order of rows, so that the reading of tiles runs forward.
        chosen.sort()
        kept = len(chosen) - 2 * attackers

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = _nearest_median(ordered, kept)

        over_tiles(rows, work, chosen)
        shares = np.zeros(count)
        shares[chosen] = 1 / len(chosen)
        return [float(share) for share in shares]


def _nearest_median(ordered: Floats, kept: int) -> Doubles:
    """Return of each row the mean of the ``kept`` values nearest its median."""
    import numpy as np

    from fedgrass.strategies.arithmetic.columns import middle

    count = ordered.shape[1]
    centred = ordered - middle(ordered)[:, None]
    # The values nearest the median are neighbours in order: of all such runs, take the one whose farther end is nearest.
    ends = np.maximum(-centred[:, : count - kept + 1], centred[:, kept - 1 :])
    runs = np.take_along_axis(ordered, ends.argmin(axis=1)[:, None] + np.arange(kept), axis=1)
    return np.asarray(runs.mean(axis=1, dtype=np.float64))


strategy = Bulyan
