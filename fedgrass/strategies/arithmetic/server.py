"""Server optimizers: the combined difference is a pseudo-gradient that a step is taken along.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295 (algorithm 2, without bias
correction); momentum as in Hsu et al. 2019, https://arxiv.org/abs/1909.06335. State starts at zero; the paper's v₋₁ = τ² is
that of a v which is kept without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgrass.strategies.arithmetic.interfaces import State
from fedgrass.update.codecs import Floats


@dataclass(frozen=True)
class Step:
    """x += lr·Δ; with ``learning_rate`` 1 the combination itself."""

    learning_rate: float = 1.0
    slots: tuple[str, ...] = ()

    def step(self, delta: Floats, _state: State) -> Floats:
        """Return lr·Δ."""
        return delta * self.learning_rate


@dataclass(frozen=True)
class Momentum:
    """m = β·m + Δ; x += lr·m."""

    learning_rate: float = 1.0
    momentum: float = 0.9
    slots: tuple[str, ...] = ("momentum",)

    def step(self, delta: Floats, state: State) -> Floats:
        """Return lr·m."""
        m: Floats = state["momentum"]
        m *= np.float32(self.momentum)
        m += delta
        return m * self.learning_rate


@dataclass(frozen=True)
class _Adaptive:
    learning_rate: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    slots: tuple[str, ...] = ("momentum", "variance")

    def step(self, delta: Floats, state: State) -> Floats:
        """Return lr·m / (√v + τ)."""
        m: Floats = state["momentum"]
        v: Floats = state["variance"]
        m *= np.float32(self.beta_1)
        m += (1 - self.beta_1) * delta
        self._accumulate(v, np.square(delta))
        # τ is outside of the root, as in the paper: it bounds the step where the second moment is still small.
        change: Floats = m * np.float32(self.learning_rate) / (np.sqrt(v) + np.float32(self.tau))
        return change

    def _accumulate(self, v: Floats, squares: Floats) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Adagrad(_Adaptive):
    """v += Δ²."""

    beta_1: float = 0.0

    def _accumulate(self, v: Floats, squares: Floats) -> None:
        v += squares


@dataclass(frozen=True)
class Adam(_Adaptive):
    """v = β₂·v + (1 - β₂)·Δ²."""

    def _accumulate(self, v: Floats, squares: Floats) -> None:
        v *= np.float32(self.beta_2)
        v += (1 - self.beta_2) * squares


@dataclass(frozen=True)
class Yogi(_Adaptive):
    """v -= (1 - β₂)·Δ²·sign(v - Δ²)."""

    def _accumulate(self, v: Floats, squares: Floats) -> None:
        v -= (1 - self.beta_2) * squares * np.sign(v - squares)
