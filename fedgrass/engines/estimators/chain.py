"""Pipelines: a StandardScaler that the fleet measures first, transformers that stay as they are, and an estimator that learns.

Until the scaler's figures are known, a round measures them and trains nothing: coefficients that are learnt on one scale mean
nothing on another. A column whose mean is far larger than its spread takes a second round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedgrass.bundle import Statistic
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.estimators.base import Learner, Task
from fedgrass.engines.estimators.counted import Scaling
from fedgrass.tensors import Array

Step = tuple[str, Any]
"""A pipeline's step: its name, and a transformer or a `Scaling`."""


class Chain(Learner):
    """A pipeline.

    Parameters
    ----------
    model
        The pipeline itself, which predicts with what its steps hold.
    steps
        Its transformers.
    last
        Its last step's name, and what learns.
    """

    def __init__(self, model: Any, task: Task, steps: Sequence[Step], last: tuple[str, Learner]) -> None:
        super().__init__(model, task)
        self._steps = steps
        self._last_name, self.last = last
        self.whole, self.reconstructs = self.last.whole, self.last.reconstructs
        self._scaler = next(((name, step) for name, step in steps if isinstance(step, Scaling)), None)

    @property
    def statistics(self) -> dict[str, Statistic]:
        """Those of scaler and estimator."""
        return {f"{name}/{key}": kind for name, part in self._parts() for key, kind in part.statistics.items()}

    @property
    def measuring(self) -> bool:
        """Whether the next round measures the scaler."""
        return self._scaler is not None and not self._scaler[1].measured

    def arrays(self) -> dict[str, Array]:
        """Return those of scaler and estimator, under the steps' names."""
        return {f"{name}/{key}": value for name, part in self._parts() for key, value in part.arrays().items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Give each step its own."""
        for name, part in self._parts():
            part.load({key: arrays[f"{name}/{key}"] for key in part.arrays()})

    def begin(self, settings: FitSettings) -> None:
        """Begin to measure, or to train."""
        # Decided once per round by what the base says, so all devices of a round do the same.
        self._learning = self._scaler[1] if self._scaler is not None and self.measuring else self.last
        self._learning.begin(settings)

    def step(self, batch: Batch) -> None:
        """Measure the scaler on some examples, or train the estimator on them."""
        self._learning.step(replace(batch, x=self._transformed(batch.x, until=self._learning)))

    def outputs(self, x: Array) -> Array:
        """Return the estimator's outputs."""
        return self.last.outputs(self._transformed(x))

    def state(self) -> list[Array]:
        """Return what the learning step keeps."""
        return self._learning.state()

    def restore(self, state: Sequence[Array]) -> None:
        """Put it back."""
        self._learning.restore(state)

    def _transformed(self, x: Array, until: Learner | None = None) -> Array:
        for _, step in self._steps:
            # A scaler is measured on what the steps before it give, not on its own output.
            if step is until:
                break
            x = np.asarray(step.transform(x), np.float64)
        return x

    def _parts(self) -> list[tuple[str, Learner]]:
        return [*([self._scaler] if self._scaler else []), (self._last_name, self.last)]
