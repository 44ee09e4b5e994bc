"""FedAdam: an adaptive step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from fedgrass.strategies.base import Decay, MeanStrategy, Positive

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer


@dataclass(frozen=True)
class FedAdam(MeanStrategy):
    """Adaptive server optimizer.

    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
    """

    class Options(MeanStrategy.Options):
        """Of the step."""

        learning_rate: Positive = Field(default=0.1, description="Length of the server optimizer's step")
        beta_1: Decay = Field(default=0.9, description="Share of the first moment that each round keeps")
        beta_2: Decay = Field(default=0.99, description="Share of the second moment that each round keeps")
        tau: Positive = Field(default=1e-3, description="Added to the root of the second moment: bounds the step")

    options: Options

    def server(self) -> ServerOptimizer:
        """Return the optimizer."""
        from fedgrass.strategies.arithmetic.server import Adam

        return Adam(*self.step_options())

    def step_options(self) -> tuple[float, float, float, float]:
        """Return what the optimizer is made with."""
        return self.options.learning_rate, self.options.beta_1, self.options.beta_2, self.options.tau


strategy = FedAdam
