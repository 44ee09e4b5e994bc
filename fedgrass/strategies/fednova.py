"""FedNova: updates count per local step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from fedgrass.strategies.base import ClippedOptions, Method, PartialWork, Strategy, WeightedMean

if TYPE_CHECKING:
    from fedgrass.objectives import Optimizer


@dataclass(frozen=True)
class FedNova(Strategy):
    """Mean of the differences per local step, so that devices that did more steps do not outvote others.

    With momentum a step moves the further the more came before it, and each counts as far as it moves.

    Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
    https://arxiv.org/abs/2007.07481
    """

    Options = ClippedOptions
    needs_metrics = ("steps",)
    partial_work: ClassVar[PartialWork] = "by_steps"

    options: ClippedOptions
    momentum: float = field(default=0.0, repr=False)
    nesterov: bool = field(default=False, repr=False)

    def for_optimizer(self, optimizer: Optimizer) -> Strategy:
        """Return the same for the momentum of a model's optimizer; of any but ``sgd`` and ``momentum`` all steps count alike."""
        if optimizer.name != "momentum":
            return self
        return replace(self, momentum=optimizer.momentum, nesterov=optimizer.nesterov)

    def build(self) -> Method:
        """Return the normalised mean."""
        from fedgrass.strategies.arithmetic.server import Step
        from fedgrass.strategies.arithmetic.weighting import FedNovaWeighting

        return WeightedMean(FedNovaWeighting(self.momentum, self.nesterov), Step(), self.options.built_clip())


strategy = FedNova
