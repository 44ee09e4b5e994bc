"""FedNova: updates count per local step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedgrass.strategies.base import ClippedOptions, Method, PartialWork, Strategy, WeightedMean


@dataclass(frozen=True)
class FedNova(Strategy):
    """Mean of the differences per local step, so that devices that did more steps do not outvote others.

    Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
    https://arxiv.org/abs/2007.07481
    """

    Options = ClippedOptions
    needs_metrics = ("steps",)
    partial_work: ClassVar[PartialWork] = "by_steps"

    options: ClippedOptions

    def build(self) -> Method:
        """Return the normalised mean."""
        from fedgrass.strategies.arithmetic.server import Step
        from fedgrass.strategies.arithmetic.weighting import FedNovaWeighting

        return WeightedMean(FedNovaWeighting(), Step(), self.options.built_clip())


strategy = FedNova
