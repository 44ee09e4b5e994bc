"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.strategies.base import RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class TrimmedMean(RobustStrategy):
    """The mean of each coordinate without as many of its smallest and largest values as there may be liars (Yin et al. 2018)."""

    def rule(self, attackers: float) -> Combination:
        """Return the rule."""
        return TrimmedMeanRule(attackers)


@dataclass(frozen=True)
class TrimmedMeanRule:
    """The rule; `TrimmedMean` says what it does."""

    attackers: float

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the trimmed means."""
        import numpy as np

        from fedgrass.strategies.arithmetic.columns import in_order, over_tiles
        from fedgrass.strategies.arithmetic.products import attackers_among

        count = len(rows.facts)
        cut = attackers_among(self.attackers, count, room=2)

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = ordered[:, cut : count - cut].mean(axis=1, dtype=np.float64)

        over_tiles(rows, work)
        return [1 / count] * count


strategy = TrimmedMean
