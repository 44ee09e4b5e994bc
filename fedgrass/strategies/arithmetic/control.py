"""The server's part of strategies whose devices keep state: what it adds up of those that took part, of how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedgrass.strategies.arithmetic.interfaces import State, UpdateMetadata
from fedgrass.strategies.arithmetic.weighting import StepLengthWeighting
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class ControlVariate:
    """SCAFFOLD: c = (1 - s)·c - s·Δ; x += lr·a·Δ, with Δ the mean difference per unit of step length.

    ``step_length`` a is the devices' mean, s the share of the devices that took part. A device's new control variate is its mean
    gradient, cᵢ - c - Δᵢ / aᵢ, so what changed of it is -c - Δᵢ / aᵢ, and no update needs to carry it. Karimireddy et al. 2020,
    https://arxiv.org/abs/1910.06378, algorithm 1.
    """

    learning_rate: float = 1.0
    equal: bool = False
    step_length: float = 1.0
    share: float = 1.0
    slots: tuple[str, ...] = ("control",)

    def in_round(self, facts: Sequence[UpdateMetadata], devices: int) -> ControlVariate:
        """Return the round's; see `RoundOptimizer`."""
        length = StepLengthWeighting(equal=self.equal).mean_length(facts)
        return replace(self, step_length=length, share=_share(len(facts), devices))

    def step(self, delta: Floats, state: State) -> Floats:
        """Return lr·a·Δ."""
        control = state["control"]
        # In place, and in float32: the state is as large as the model.
        control *= np.float32(1 - self.share)
        control -= np.float32(self.share) * delta
        change: Floats = delta * np.float32(self.learning_rate * self.step_length)
        return change


@dataclass(frozen=True)
class DynamicRegularization:
    """FedDyn: h += s·Δ; x += Δ + h, with s the share of the devices that took part.

    h is -1/α times the paper's. Acar et al. 2021, https://arxiv.org/abs/2111.04263, algorithm 1.
    """

    share: float = 1.0
    slots: tuple[str, ...] = ("linear",)

    def in_round(self, facts: Sequence[UpdateMetadata], devices: int) -> DynamicRegularization:
        """Return the round's; see `RoundOptimizer`."""
        return replace(self, share=_share(len(facts), devices))

    def step(self, delta: Floats, state: State) -> Floats:
        """Return Δ + h."""
        linear = state["linear"]
        # Before it is used, as in the paper: this round's part counts at once.
        linear += np.float32(self.share) * delta
        return delta + linear


def _share(took_part: int, devices: int) -> float:
    # More may take part than are known, where devices joined after the count.
    return min(1.0, took_part / devices) if devices else 1.0
