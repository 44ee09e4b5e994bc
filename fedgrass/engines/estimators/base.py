"""What the scikit-learn engine asks of an estimator: named arrays, a step, outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedgrass.bundle import Optimizer, Statistic
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.loop import check_state
from fedgrass.errors import EngineError
from fedgrass.tensors import Array


@dataclass(frozen=True)
class Task:
    """``features`` of a flat input, ``classes`` of a classifier's labels, ``outputs``: targets of a regressor."""

    features: int
    classes: int
    outputs: int
    optimizer: Optimizer = field(default_factory=Optimizer)


class Learner(ABC):
    """An estimator that is trained by steps on float64 data, x [n, features].

    Attributes
    ----------
    whole
        Whether a step takes all examples at once, and an epoch is one step.
    reconstructs
        Whether y is x: the estimator takes no targets.
    statistics
        Which of its arrays are measured: they are averaged, and no server optimizer steps along them.
    """

    whole = False
    reconstructs = False

    def __init__(self, model: Any, task: Task) -> None:
        self.model, self.task = model, task

    @property
    def kind(self) -> str:
        """The estimator's class, for messages."""
        return type(self.model).__name__

    @property
    def statistics(self) -> dict[str, Statistic]:
        """Names of measured arrays; none unless a subclass says so."""
        return {}

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """Return what travels, by name; float64, not to be written to."""

    @abstractmethod
    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take over what `arrays` named; the estimator predicts by it from now on."""

    @abstractmethod
    def begin(self, settings: FitSettings) -> None:
        """Begin a round at what the estimator holds; raises `EngineError` if it cannot do what the round asks for."""

    @abstractmethod
    def step(self, batch: Batch) -> None:
        """Learn from some examples: x [n, features], y class numbers [n], or targets [n] or [n, outputs]."""

    @abstractmethod
    def outputs(self, x: Array) -> Array:
        """Return probabilities [n, classes] of a classifier, and what others give [n] or [n, outputs]."""

    def state(self) -> list[Array]:
        """Return a copy of what a round keeps besides the arrays."""
        return []

    def restore(self, state: Sequence[Array]) -> None:
        """Put back what `state` gave; raises `EngineError` if it is another model's."""
        check_state(state, [])


def refusal(reason: str) -> EngineError:
    """Return the error of a round or of data that an estimator cannot serve, with the engine's name in front."""
    return EngineError(f"engine sklearn: {reason}")


def refuse_terms(settings: FitSettings, kind: str, instead: str) -> None:
    """Raise `EngineError` if a round asks for terms of a gradient from an estimator that has none to offer.

    Parameters
    ----------
    settings
        The round's.
    kind
        The estimator, for the error.
    instead
        What to do.
    """
    # An estimator that ignored them would train another algorithm than the round's, and nobody would see it.
    for name, value in (("proximal_mu", settings.proximal_mu), ("gradient_clip_norm", settings.clip_norm)):
        if value:
            raise refusal(f"{kind} is fitted without gradients and cannot honour fit.{name}; {instead}")


def rounded(value: Array) -> Array:
    """Return float64 values that float32 holds: what is counted from must be what travels."""
    return np.asarray(np.asarray(value, np.float32), np.float64)
