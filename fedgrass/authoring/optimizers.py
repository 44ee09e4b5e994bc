"""Optimizers inside the training graph: same formulas as Keras, state in resource variables of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import tensorflow as tf

from fedgrass import bundle
from fedgrass.authoring.gradients import added

Tensor: TypeAlias = tf.Tensor
Variable: TypeAlias = tf.Variable


class Optimizer(Protocol):
    """One rule of descent. ``state`` is empty or float32 variables that start at ``initial`` in every round.

    ``linear``: whether the change is the learning rate times something linear in the gradients. `step` then takes gradients
    that are already times the learning rate: the loss's gradient is smaller than the parameters', so that is where to multiply.
    """

    state: list[Variable]
    initial: list[float]
    linear: bool

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Change the parameters by one step.

        Parameters
        ----------
        values
            What the parameters are now, read once.
        gradients
            One for each parameter; times the learning rate where the optimizer is ``linear``.
        learning_rate
            Scalar.
        """
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
        self.nesterov = settings.nesterov
        self.state = [_zeros_like(parameter) for parameter in parameters]
        self.initial = [0.0] * len(self.state)

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], _: Tensor) -> None:
        for parameter, value, velocity, gradient in zip(self.parameters, values, self.state, gradients, strict=True):
            change = self.momentum * velocity - gradient
            velocity.assign(change)
            # Nesterov's step as Keras writes it: the momentum of the change that was just made, once more.
            parameter.assign(value + (self.momentum * change - gradient if self.nesterov else change))


class _Adam:
    """Adam (https://arxiv.org/abs/1412.6980); the last state variable holds beta_1^t and beta_2^t."""

    linear = False

    def __init__(self, parameters: Sequence[Variable], settings: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.settings = settings
        self.first = [_zeros_like(parameter) for parameter in parameters]
        self.second = [_zeros_like(parameter) for parameter in parameters]
        self.largest = [_zeros_like(parameter) for parameter in parameters] if settings.amsgrad else []
        # Two products instead of a step counter and its powers.
        self.powers = tf.Variable([1.0, 1.0])
        self.state = [*self.first, *self.second, *self.largest, self.powers]
        self.initial = [0.0] * (len(self.state) - 1) + [1.0]

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        settings = self.settings
        powers = self.powers * tf.constant([settings.beta_1, settings.beta_2])
        self.powers.assign(powers)
        # Both bias corrections in the rate: one scalar instead of two tensors for each parameter.
        rate = learning_rate * tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0])
        moments = zip(self.first, self.second, self.largest or [None] * len(self.first), strict=True)
        for parameter, value, (first, second, largest), gradient in zip(
            self.parameters, values, moments, gradients, strict=True
        ):
            # first + (g − first)(1 − β) is β·first + (1 − β)·g with one multiplication less.
            mean = first + (gradient - first) * (1.0 - settings.beta_1)
            square = second + (tf.square(gradient) - second) * (1.0 - settings.beta_2)
            first.assign(mean)
            second.assign(square)
            if largest is not None:
                # AMSGrad: the largest second moment so far (https://arxiv.org/abs/1904.09237).
                square = tf.maximum(largest, square)
                largest.assign(square)
            parameter.assign(value - rate * mean / (tf.sqrt(square) + settings.epsilon))


class _RMSprop:
    """RMSprop (Hinton 2012), as Keras has it: epsilon is inside the root."""

    linear = False

    def __init__(self, parameters: Sequence[Variable], settings: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.settings = settings
        self.squares = [_zeros_like(parameter) for parameter in parameters]
        self.means = [_zeros_like(parameter) for parameter in parameters] if settings.centered else []
        self.velocities = [_zeros_like(parameter) for parameter in parameters] if settings.rmsprop_momentum else []
        self.state = [*self.squares, *self.means, *self.velocities]
        self.initial = [0.0] * len(self.state)

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        settings = self.settings
        for i, (parameter, value, gradient) in enumerate(zip(self.parameters, values, gradients, strict=True)):
            square = settings.rho * self.squares[i] + (1.0 - settings.rho) * tf.square(gradient)
            self.squares[i].assign(square)
            if settings.centered:
                mean = settings.rho * self.means[i] + (1.0 - settings.rho) * gradient
                self.means[i].assign(mean)
                square -= tf.square(mean)
            change = learning_rate * gradient / tf.sqrt(square + settings.epsilon)
            if settings.rmsprop_momentum:
                change += settings.rmsprop_momentum * self.velocities[i]
                self.velocities[i].assign(change)
            parameter.assign(value - change)


class _Adagrad:
    """Adagrad (https://jmlr.org/papers/v12/duchi11a.html)."""

    linear = False

    def __init__(self, parameters: Sequence[Variable], settings: bundle.Optimizer) -> None:
        self.parameters = parameters
        self.epsilon = settings.epsilon
        self.state = [_zeros_like(parameter) for parameter in parameters]
        self.initial = [settings.initial_accumulator_value] * len(self.state)

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        for parameter, value, total, gradient in zip(self.parameters, values, self.state, gradients, strict=True):
            summed = total + tf.square(gradient)
            total.assign(summed)
            parameter.assign(value - learning_rate * gradient / tf.sqrt(summed + self.epsilon))


class Constrained:
    """A parameter that is put back into its constraint after each step, as Keras does."""

    def __init__(self, variable: Variable, constraint: Callable[[Tensor], Tensor]) -> None:
        self._variable, self._constraint = variable, constraint
        self.shape = variable.shape

    def assign(self, value: Tensor) -> None:
        """Write what the constraint makes of ``value``."""
        self._variable.assign(self._constraint(value))


def clipped(gradients: Sequence[Tensor], settings: bundle.Optimizer, scale: Tensor) -> list[Tensor]:
    """Clip gradients as the optimizer's settings say; like Keras, by the first of the three settings that is set.

    Parameters
    ----------
    gradients
        One for each parameter, times ``scale``.
    settings
        The optimizer's.
    scale
        Scalar that the gradients are multiplied by already, so the bounds are too.

    Returns
    -------
    list
        The gradients, clipped or as they were.
    """
    # Keras' own order; a model may set one only.
    if settings.clipnorm is not None:
        return [_bounded(gradient, _norm([gradient]), scale * settings.clipnorm) for gradient in gradients]
    if settings.global_clipnorm is not None:
        norm = _norm(gradients)
        return [_bounded(gradient, norm, scale * settings.global_clipnorm) for gradient in gradients]
    if settings.clipvalue is not None:
        most = scale * settings.clipvalue
        return [tf.maximum(tf.minimum(gradient, most), -most) for gradient in gradients]
    return list(gradients)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return tf.sqrt(added([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]))


def _bounded(gradient: Tensor, norm: Tensor, most: Tensor) -> Tensor:
    # 1e-30: a gradient of zeros has no direction, and must stay zeros.
    return gradient * tf.minimum(1.0, most / tf.maximum(norm, 1e-30))


def _zeros_like(parameter: Variable) -> Variable:
    return tf.Variable(tf.zeros(parameter.shape))


OPTIMIZERS: dict[bundle.OptimizerName, Callable[[Sequence[Variable], bundle.Optimizer], Optimizer]] = {
    "sgd": _SGD,
    "momentum": _Momentum,
    "adam": _Adam,
    "adamw": _Adam,
    "rmsprop": _RMSprop,
    "adagrad": _Adagrad,
}
