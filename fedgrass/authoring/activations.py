"""Keras' activations whose operators LiteRT lacks, written in operators that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.patching import patched

Tensor: TypeAlias = tf.Tensor

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@contextmanager
def exchanged() -> Iterator[None]:
    """Point Keras to the functions of this module while a model is traced."""
    with ExitStack() as stack:
        # Keras calls these by TensorFlow's names, some under two modules: both have to be pointed here.
        for owner, name, function in (
            (tf.math, "softplus", _softplus),
            (tf.nn, "softplus", _softplus),
            (tf.math, "log_sigmoid", _log_sigmoid),
            (tf.nn, "softsign", _softsign),
            (tf.nn, "selu", _selu),
            (tf.math, "expm1", _expm1),
            (tf.math, "log1p", _log1p),
            (tf.math, "tan", _tan),
            (tf.math, "reduce_logsumexp", _logsumexp),
        ):
            stack.enter_context(patched(owner, name, function))
        yield


def _softplus(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001 - TensorFlow's signature
    def softplus(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # max(x, 0) + log(1 + e^−|x|) does not overflow for any x.
        return tf.maximum(x, 0.0) + tf.math.log(1.0 + tf.exp(-tf.abs(x))), lambda dy: dy * tf.sigmoid(x)

    found: Tensor = tf.custom_gradient(softplus)(x)
    return found


def _log_sigmoid(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    return -_softplus(-x)


def _softsign(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    return x / (1.0 + tf.abs(x))


def _selu(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    return _SELU_SCALE * (tf.maximum(x, 0.0) + _SELU_ALPHA * tf.nn.elu(tf.minimum(x, 0.0)))


def _expm1(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    # Near 0 this loses digits that the operator would keep; LiteRT has no expm1.
    return tf.exp(x) - 1.0


def _log1p(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    # Likewise of log1p.
    return tf.math.log(1.0 + x)


def _logsumexp(
    x: Tensor,
    axis: int | list[int] | None = None,
    keepdims: bool = False,
    name: str | None = None,  # noqa: ARG001
) -> Tensor:
    largest = tf.stop_gradient(tf.reduce_max(x, axis, keepdims=True))
    # Where all are −∞ there is nothing to take off.
    largest = tf.maximum(largest, x.dtype.min)
    found = tf.math.log(tf.reduce_sum(tf.exp(x - largest), axis, keepdims=True)) + largest
    return found if keepdims else tf.reshape(found, tf.reduce_sum(x, axis).shape)


def _tan(x: Tensor, name: str | None = None) -> Tensor:  # noqa: ARG001
    return tf.sin(x) / tf.cos(x)
