"""Optimizers inside the training graph: same formulas as Keras, state in resource variables of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf

from fedgrass import bundle

Tensor = Any
Variable = Any


class Optimizer(Protocol):
    """One rule of descent. ``state`` is empty or float32 variables that start at ``initial`` in every round.

    ``linear``: whether the change is the learning rate times something linear in the gradients. `step` then takes gradients
    that are already times the learning rate: the loss's gradient is smaller than the parameters', so that is where to multiply.
    """

    state: list[Variable]
    initial: list[float]
    linear: bool

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Change the parameters, which have these values now, by one step."""
        ...


class _SGD:
    linear = True

    def __init__(self, parameters: Sequence[Variable], _: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.state: list[Variable] = []
        self.initial: list[float] = []

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], _: Tensor) -> None:
        for parameter, value, gradient in zip(self.parameters, values, gradients, strict=True):
            parameter.assign(value - gradient)


class _Momentum:
    linear = True

    def __init__(self, parameters: Sequence[Variable], settings: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.momentum = settings.momentum
        self.state = [_zeros_like(parameter) for parameter in parameters]
        self.initial = [0.0] * len(self.state)

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], _: Tensor) -> None:
        for parameter, value, velocity, gradient in zip(self.parameters, values, self.state, gradients, strict=True):
            change = self.momentum * velocity - gradient
            velocity.assign(change)
            parameter.assign(value + change)


class _Adam:
    """Adam (https://arxiv.org/abs/1412.6980); the last state variable holds beta_1^t and beta_2^t."""

    linear = False

    def __init__(self, parameters: Sequence[Variable], settings: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.settings = settings
        self.first = [_zeros_like(parameter) for parameter in parameters]
        self.second = [_zeros_like(parameter) for parameter in parameters]
        self.powers = tf.Variable([1.0, 1.0])
        self.state = [*self.first, *self.second, self.powers]
        self.initial = [0.0] * (2 * len(parameters)) + [1.0]

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        settings = self.settings
        powers = self.powers * tf.constant([settings.beta_1, settings.beta_2])
        self.powers.assign(powers)
        rate = learning_rate * tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0])
        moments = zip(self.first, self.second, strict=True)
        for parameter, value, (first, second), gradient in zip(
            self.parameters, values, moments, gradients, strict=True
        ):
            mean = first + (gradient - first) * (1.0 - settings.beta_1)
            square = second + (tf.square(gradient) - second) * (1.0 - settings.beta_2)
            first.assign(mean)
            second.assign(square)
            parameter.assign(value - rate * mean / (tf.sqrt(square) + settings.epsilon))


def _zeros_like(parameter: Variable) -> Variable:
    return tf.Variable(tf.zeros(parameter.shape))


OPTIMIZERS: dict[str, Callable[[Sequence[Variable], bundle.Optimizer], Optimizer]] = {
    "sgd": _SGD,
    "momentum": _Momentum,
    "adam": _Adam,
}
