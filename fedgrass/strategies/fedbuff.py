"""FedBuff: late updates are taken too, and count less the older their base is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from fedgrass.strategies.base import ClippedOptions, Method, PartialWork, Strategy, WeightedMean


@dataclass(frozen=True)
class FedBuff(Strategy):
    """Mean in which an update's weight falls with the age of its base: 1 / (1 + age) ** ``exponent``.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, https://arxiv.org/abs/2106.06639
    """

    class Options(ClippedOptions):
        """Of the weighting."""

        exponent: float = Field(default=0.5, ge=0, le=10, description="How fast an update's weight falls with its age")
        staleness: int = Field(
            default=5, ge=0, le=100, description="Number of earlier rounds whose late updates are taken too"
        )

    partial_work: ClassVar[PartialWork] = "by_share"

    options: Options

    @property
    def staleness(self) -> int:
        """Number of earlier rounds whose late updates are taken too."""
        return self.options.staleness

    def build(self) -> Method:
        """Return the mean by age."""
        from fedgrass.strategies.arithmetic.server import Step
        from fedgrass.strategies.arithmetic.weighting import StalenessWeighting

        return WeightedMean(StalenessWeighting(self.options.exponent), Step(), self.options.built_clip())


strategy = FedBuff
