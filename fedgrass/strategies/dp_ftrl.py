"""DP-FTRL: the mean with momentum, under noise that later rounds mostly take back: a tree of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedgrass.strategies.base import MeanStrategy, PartialWork, Positive, StrategyOptions

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer
    from fedgrass.strategies.base import Method


@dataclass(frozen=True)
class DpFtrl(MeanStrategy):
    """Mean with server momentum, whose noise is a tree's: what t rounds together have learnt has that of log t sums, not of t.

    Kairouz et al., "Practical and Private (Deep) Learning Without Sampling or Shuffling", ICML 2021,
    https://arxiv.org/abs/2103.00039. All devices count alike. In the ``rounds`` of a tree each device is asked once, by its
    lot, so nothing hangs on who was asked being secret; then another tree begins.
    """

    class Options(StrategyOptions):
        """Of the tree and the step."""

        rounds: Literal[2, 4, 8, 16, 32, 64, 128, 256] = Field(
            default=64,
            description="Rounds of a tree of noise: in each of them another such share of the fleet is asked",
        )
        learning_rate: Positive = Field(default=1.0, description="Multiple of the momentum that is added to the model")
        momentum: float = Field(default=0.0, ge=0, lt=1, description="Share of the momentum that each round keeps")

    partial_work: ClassVar[PartialWork] = "no"

    options: Options

    @property
    def tree(self) -> int:
        """Rounds of a tree."""
        return self.options.rounds

    def build(self) -> Method:
        """Return the mean of all alike with its step; the noise is the aggregator's."""
        from fedgrass.strategies.arithmetic.weighting import EqualWeighting
        from fedgrass.strategies.base import WeightedMean

        return WeightedMean(EqualWeighting(), self.server())

    def server(self) -> ServerOptimizer:
        """Return the momentum; with a share of 0 it is the mean's own step."""
        from fedgrass.strategies.arithmetic.server import Momentum

        return Momentum(self.options.learning_rate, self.options.momentum)


strategy = DpFtrl
