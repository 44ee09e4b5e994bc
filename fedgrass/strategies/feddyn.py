"""FedDyn: a linear and a proximal term make what is best for each device agree with what is best for the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedgrass.strategies.base import DeviceState, MeanStrategy, PartialWork

if TYPE_CHECKING:
    from fedgrass.strategies.arithmetic.interfaces import ServerOptimizer


@dataclass(frozen=True)
class FedDyn(MeanStrategy):
    """Each device minimises its loss minus a linear term that it keeps, plus a proximal term of strength ``alpha``.

    Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, https://arxiv.org/abs/2111.04263
    """

    class Options(MeanStrategy.Options):
        """Of the regularization."""

        alpha: float = Field(
            default=0.1, gt=0, le=1000, description="Strength of the proximal term, and of what devices keep of it"
        )

    device_state: ClassVar[DeviceState | None] = "feddyn"
    partial_work: ClassVar[PartialWork] = "no"

    options: Options

    @property
    def device_fit(self) -> Mapping[str, Any]:
        """What it sets of each device's training."""
        return {"control": self.device_state, "proximal_mu": self.options.alpha}

    def server(self) -> ServerOptimizer:
        """Return the server's part of the linear term."""
        from fedgrass.strategies.arithmetic.control import DynamicRegularization

        return DynamicRegularization()


strategy = FedDyn
