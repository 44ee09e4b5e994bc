"""FedYogi: an adaptive step whose denominator changes slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.strategies.fedadam import FedAdam

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Adaptive server optimizer whose second moment changes by no more than a share of the new square.

    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295
    """

    def server(self) -> ServerOptimizer:
        """Return the optimizer."""
        from fedgrass.strategies.arithmetic.server import Yogi

        return Yogi(*self.step_options())


strategy = FedYogi
