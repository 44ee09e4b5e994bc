"""Losses as value and closed-form gradient, in LiteRT's built-in operators.

``tf.gradients`` starts from the gradient given here, so that no loss needs differentiable operators. Classifiers are
trained on logits: `fedgrass.authoring.export` takes a final softmax or sigmoid off first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from fedgrass import bundle

Tensor = Any


@dataclass(frozen=True)
class PerExample:
    """Loss [B], its gradient by the model's output [B, …], and how right each example is [B], from 0 to 1."""

    loss: Tensor
    gradient: Tensor
    correct: Tensor


LossFunction = Callable[[Tensor, Tensor], PerExample]


def _sparse_categorical_crossentropy(logits: Tensor, y: Tensor) -> PerExample:
    return _categorical_crossentropy(logits, tf.one_hot(y, logits.shape[-1]))


def _categorical_crossentropy(logits: Tensor, y: Tensor) -> PerExample:
    hit = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.argmax(y, axis=-1, output_type=tf.int32))
    return PerExample(
        loss=-tf.reduce_sum(y * tf.nn.log_softmax(logits), axis=-1),
        gradient=tf.nn.softmax(logits) * tf.reduce_sum(y, axis=-1, keepdims=True) - y,
        correct=tf.cast(hit, tf.float32),
    )


def _binary_crossentropy(logits: Tensor, y: Tensor) -> PerExample:
    # max(z, 0) − z·y + log(1 + e^−|z|) does not overflow for any z.
    loss = tf.nn.relu(logits) - logits * y + tf.math.log(1.0 + tf.exp(-tf.abs(logits)))
    hit = tf.cast(tf.equal(logits > 0, y > 0.5), tf.float32)
    return PerExample(_mean(loss), (tf.sigmoid(logits) - y) / _per_example(y), _mean(hit))


def _mean_squared_error(output: Tensor, y: Tensor) -> PerExample:
    difference = output - y
    loss = _mean(tf.square(difference))
    return PerExample(loss, 2.0 * difference / _per_example(y), tf.zeros_like(loss))


def _mean_absolute_error(output: Tensor, y: Tensor) -> PerExample:
    difference = output - y
    loss = _mean(tf.abs(difference))
    return PerExample(loss, tf.sign(difference) / _per_example(y), tf.zeros_like(loss))


def _huber(output: Tensor, y: Tensor) -> PerExample:
    """Huber's loss with delta 1: d²/2 up to |d| = 1, |d| − 1/2 beyond."""
    difference = output - y
    inner = tf.clip_by_value(difference, -1.0, 1.0)
    loss = _mean(inner * (difference - 0.5 * inner))
    return PerExample(loss, inner / _per_example(y), tf.zeros_like(loss))


def _mean(values: Tensor) -> Tensor:
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def _per_example(y: Tensor) -> float:
    return float(y.shape[1:].num_elements())


LOSSES: dict[bundle.Loss, LossFunction] = {
    "sparse_categorical_crossentropy": _sparse_categorical_crossentropy,
    "categorical_crossentropy": _categorical_crossentropy,
    "binary_crossentropy": _binary_crossentropy,
    "mean_squared_error": _mean_squared_error,
    "mean_absolute_error": _mean_absolute_error,
    "huber": _huber,
}
