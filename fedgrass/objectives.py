"""What a model is trained with: its loss, its optimizer, and how the learning rate changes within a round."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Loss = Literal[
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "log_cosh",
    "poisson",
    "kl_divergence",
    "hinge",
    "squared_hinge",
    "categorical_hinge",
    "cosine_similarity",
    "binary_focal_crossentropy",
    "categorical_focal_crossentropy",
]

OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class LossOptions(_Model):
    """What a loss is computed with beside output and label; each loss reads those that it knows, as in Keras."""

    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    delta: float = Field(default=1.0, gt=0, description="Where Huber's loss becomes linear")
    gamma: float = Field(default=2.0, ge=0, description="Of the focal losses")
    alpha: float = Field(default=0.25, ge=0, le=1, description="Of the focal losses")
    apply_class_balancing: bool = Field(default=False, description="Whether binary_focal_crossentropy uses alpha")


class Schedule(_Model):
    """How the learning rate changes with the step within a round: Keras' schedules, as a multiple of the round's rate."""

    name: Literal["exponential", "inverse_time", "polynomial", "cosine", "piecewise"]
    decay_steps: int = Field(default=1, ge=1)
    decay_rate: float = Field(default=1.0, ge=0)
    staircase: bool = False
    end: float = Field(default=0.0, ge=0, description="Last multiple of a polynomial or cosine schedule")
    power: float = Field(default=1.0, gt=0)
    cycle: bool = False
    warmup_steps: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=0.0, ge=0)
    boundaries: tuple[int, ...] = Field(default=(), max_length=1000)
    multiples: tuple[float, ...] = Field(default=(), max_length=1001)

    @model_validator(mode="after")
    def _has_a_multiple_for_each_piece(self) -> Schedule:
        if self.name == "piecewise" and len(self.multiples) != len(self.boundaries) + 1:
            raise ValueError("a piecewise schedule has one multiple more than boundaries")
        return self

    def multiple(self, step: int) -> float:
        """Return what the rate is multiplied by at a step of the round, from 0."""
        if self.name == "piecewise":
            # A step at a boundary still has the rate before it, as in Keras.
            return self.multiples[sum(step > boundary for boundary in self.boundaries)]
        if self.name == "cosine":
            return self._cosine(step)
        if self.name == "polynomial":
            return self._polynomial(step)
        share = step / self.decay_steps
        share = math.floor(share) if self.staircase else share
        return float(self.decay_rate**share if self.name == "exponential" else 1 / (1 + self.decay_rate * share))

    def _cosine(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_from + (1 - self.warmup_from) * step / self.warmup_steps
        share = min(step - self.warmup_steps, self.decay_steps) / self.decay_steps
        return (1 - self.end) * 0.5 * (1 + math.cos(math.pi * share)) + self.end

    def _polynomial(self, step: int) -> float:
        # With `cycle` the decay starts again, each time over the next multiple of decay_steps.
        length = self.decay_steps * (max(math.ceil(step / self.decay_steps), 1) if self.cycle else 1)
        return float((1.0 - self.end) * (1 - min(step, length) / length) ** self.power + self.end)


_DEFAULT_RATES: dict[OptimizerName, float] = {
    "sgd": 0.1,
    "momentum": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "rmsprop": 0.001,
    "adagrad": 0.01,
}


class Optimizer(_Model):
    """What ``train`` applies to the gradients, with Keras' formulas; the learning rate is an input of the signature.

    ``learning_rate`` is what a round trains with whose settings name none, ``schedule`` changes either within the round.
    """

    name: OptimizerName = "sgd"
    learning_rate: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    schedule: Schedule | None = None
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of ``momentum``")
    nesterov: bool = False
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-7, gt=0)
    amsgrad: bool = False
    rho: float = Field(default=0.9, ge=0, lt=1)
    rmsprop_momentum: float = Field(default=0.0, ge=0, lt=1)
    centered: bool = False
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    weight_decay: float | None = Field(default=None, ge=0, description="None: 0.004 for adamw, else none")
    clipvalue: float | None = Field(default=None, gt=0)
    clipnorm: float | None = Field(default=None, gt=0, description="Of each parameter's gradient")
    global_clipnorm: float | None = Field(default=None, gt=0)

    @property
    def rate(self) -> float:
        """Learning rate of a round whose settings name none."""
        return _DEFAULT_RATES[self.name] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """Share of each trained parameter, times the learning rate, that a step takes away."""
        if self.weight_decay is None:
            return 0.004 if self.name == "adamw" else 0.0
        return self.weight_decay

    def rate_at(self, rate: float, step: int) -> float:
        """Return the learning rate at a step of the round, from 0."""
        return rate if self.schedule is None else rate * self.schedule.multiple(step)
