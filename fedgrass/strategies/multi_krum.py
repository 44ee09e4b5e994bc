"""Multi-Krum: the mean of the updates that lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.strategies.base import RobustOptions, RobustStrategy
from fedgrass.strategies.krum import KrumRule

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import Combination


@dataclass(frozen=True)
class MultiKrum(RobustStrategy):
    """The mean of those updates that lie closest to their neighbours.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.
    """

    class Options(RobustOptions):
        """Of the choice."""

        chosen: float | None = Field(
            default=None,
            gt=0,
            le=1,
            description="Share of the updates that is averaged; null for all but the attackers",
        )

    options: Options

    def rule(self, attackers: float) -> Combination:
        """Return the rule."""
        return KrumRule(attackers, 1 - attackers if self.options.chosen is None else self.options.chosen)


strategy = MultiKrum
