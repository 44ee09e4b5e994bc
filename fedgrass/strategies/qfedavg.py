"""q-FedAvg: updates of devices with a high loss count more."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from fedgrass.strategies.base import ClippedOptions, Method, Positive, Strategy, WeightedMean


@dataclass(frozen=True)
class QFedAvg(Strategy):
    """Mean in which devices with a high loss count more.

    Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, https://arxiv.org/abs/1905.10497
    """

    class Options(ClippedOptions):
        """Of the weighting."""

        q: float = Field(default=1.0, ge=0, le=10, description="How much more a high loss counts; 0 counts all alike")
        learning_rate: Positive = Field(default=0.1, description="The devices' learning rate")
        max_loss: Positive = Field(default=10.0, description="A claimed loss counts as no more than this")

    needs_metrics = ("loss",)

    options: Options

    def build(self) -> Method:
        """Return the mean by losses."""
        from fedgrass.strategies.arithmetic.server import Step
        from fedgrass.strategies.arithmetic.weighting import QFairWeighting

        chosen = self.options
        weighting = QFairWeighting(chosen.q, chosen.learning_rate, chosen.max_loss)
        return WeightedMean(weighting, Step(), chosen.built_clip())


strategy = QFedAvg
