"""The coordinate-wise median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.strategies.base import RobustStrategy

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination, UpdateMatrix
    from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Median(RobustStrategy):
    """The median of each coordinate.

    Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, https://arxiv.org/abs/1803.01498
    """

    def rule(self, attackers: float) -> Combination:  # noqa: ARG002 - it withstands up to half
        """Return the rule."""
        return MedianRule()


@dataclass(frozen=True)
class MedianRule:
    """The rule; `Median` says what it does."""

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the medians; no row has more of a share than another."""
        from fedgrass.strategies.arithmetic.columns import in_order, middle, over_tiles

        count = len(rows.facts)

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = middle(ordered)

        over_tiles(rows, work)
        return [1 / count] * count


strategy = Median
