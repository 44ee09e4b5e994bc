"""SCAFFOLD: control variates take out of each device's steps what makes it drift from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from fedgrass.strategies.base import DeviceState, MeanStrategy, Method, PartialWork, Positive, WeightedMean


@dataclass(frozen=True)
class Scaffold(MeanStrategy):
    """Each device steps along its gradient plus the fleet's control variate minus its own; for models that sgd or momentum train.

    A device's control variate is the mean gradient of its last round; it stays on the device. The fleet's is worked out from the
    updates, which are the size that they always are, and lies beside the model. Differences count per step, as with ``fednova``;
    where all devices take as many steps it is the paper's algorithm. Karimireddy et al., "SCAFFOLD: Stochastic Controlled
    Averaging for Federated Learning", ICML 2020, https://arxiv.org/abs/1910.06378 (option II)
    """

    class Options(MeanStrategy.Options):
        """Of the step."""

        learning_rate: Positive = Field(default=1.0, description="Multiple of the mean step that is added to the model")

    device_state: ClassVar[DeviceState | None] = "scaffold"
    needs_metrics = ("step_length",)
    partial_work: ClassVar[PartialWork] = "by_steps"

    options: Options

    def build(self) -> Method:
        """Return the mean per step, and the server's part of the control variates."""
        from fedgrass.strategies.arithmetic.control import ControlVariate
        from fedgrass.strategies.arithmetic.weighting import StepLengthWeighting

        equal = self.options.weighting == "equal"
        return WeightedMean(
            StepLengthWeighting(equal=equal),
            ControlVariate(self.options.learning_rate, equal=equal),
            self.options.built_clip(),
        )


strategy = Scaffold
