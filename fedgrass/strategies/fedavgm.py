"""FedAvgM: the weighted mean with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.strategies.base import Decay, MeanStrategy, Positive

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer


@dataclass(frozen=True)
class FedAvgM(MeanStrategy):
    """Weighted mean with momentum on the server.

    Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
    https://arxiv.org/abs/1909.06335
    """

    class Options(MeanStrategy.Options):
        """Of the step."""

        learning_rate: Positive = Field(default=1.0, description="Multiple of the momentum that is added to the model")
        momentum: Decay = Field(default=0.9, description="Share of the momentum that each round keeps")

    options: Options

    def server(self) -> ServerOptimizer:
        """Return the momentum."""
        from fedgrass.strategies.arithmetic.server import Momentum

        return Momentum(self.options.learning_rate, self.options.momentum)


strategy = FedAvgM
