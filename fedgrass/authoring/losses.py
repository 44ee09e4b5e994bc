"""Losses as value and closed-form gradient, in LiteRT's built-in operators.

``tf.gradients`` starts from the gradient given here, so that no loss needs differentiable operators. Classifiers are
trained on logits: `fedgrass.authoring.export` takes a final softmax or sigmoid off first.

A loss has one value for each *position*: for each example, or, where the output has more axes than the batch and its last
one, for each step or pixel. Each example's loss is the mean over its positions, as Keras has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring import gradients
from fedgrass.bundle import Loss, LossOptions

Tensor: TypeAlias = tf.Tensor

_EPSILON = 1e-7


@dataclass(frozen=True)
class PerExample:
    """Loss [B], its gradient by the model's output [B, …], and how right each example is [B], from 0 to 1.

    With ``positions``, loss and rightness are [B, positions …], and the gradient is that of each position's loss.
    """

    loss: Tensor
    gradient: Tensor
    correct: Tensor


LossFunction = Callable[[Tensor, Tensor, bool], PerExample]
"""Output [B, …], label [B, …], and whether to keep positions apart."""


def loss_function(loss: Loss, options: LossOptions) -> LossFunction:
    """Return a loss with its options."""
    return partial(_LOSSES[loss], options)


def _sparse_categorical_crossentropy(_: LossOptions, logits: Tensor, y: Tensor, positions: bool) -> PerExample:
    return _categorical_crossentropy(LossOptions(), logits, tf.one_hot(y, logits.shape[-1]), positions)


def _categorical_crossentropy(options: LossOptions, logits: Tensor, y: Tensor, positions: bool) -> PerExample:
    hit = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.argmax(y, axis=-1, output_type=tf.int32))
    if options.label_smoothing:
        y = y * (1.0 - options.label_smoothing) + options.label_smoothing / logits.shape[-1]
    return _of_positions(
        -tf.reduce_sum(y * tf.nn.log_softmax(logits), axis=-1),
        # With Σy = 1 this is softmax − y; labels that do not sum to 1 keep the factor, as in Keras.
        tf.nn.softmax(logits) * tf.reduce_sum(y, axis=-1, keepdims=True) - y,
        tf.cast(hit, tf.float32),
        positions,
    )


def _binary_crossentropy(options: LossOptions, logits: Tensor, y: Tensor, positions: bool) -> PerExample:
    hit = tf.cast(tf.equal(logits > 0, y > 0.5), tf.float32)
    if options.label_smoothing:
        y = y * (1.0 - options.label_smoothing) + 0.5 * options.label_smoothing
    # max(z, 0) − z·y + log(1 + e^−|z|) does not overflow for any z.
    loss = tf.nn.relu(logits) - logits * y + tf.math.log(1.0 + tf.exp(-tf.abs(logits)))
    return _of_values(loss, tf.sigmoid(logits) - y, positions, hit)


def _mean_squared_error(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    difference = output - y
    return _of_values(tf.square(difference), 2.0 * difference, positions)


def _mean_absolute_error(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    difference = output - y
    return _of_values(tf.abs(difference), tf.sign(difference), positions)


def _huber(options: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    """Huber's loss: d²/2 up to |d| = delta, delta·(|d| − delta/2) beyond."""
    difference = output - y
    inner = tf.clip_by_value(difference, -options.delta, options.delta)
    return _of_values(inner * (difference - 0.5 * inner), inner, positions)


def _mean_absolute_percentage_error(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    scale = 100.0 / tf.maximum(tf.abs(y), _EPSILON)
    return _of_values(scale * tf.abs(output - y), scale * tf.sign(output - y), positions)


def _mean_squared_logarithmic_error(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    above = tf.maximum(output, _EPSILON)
    difference = tf.math.log(above + 1.0) - tf.math.log(tf.maximum(y, _EPSILON) + 1.0)
    # Below the bound Keras' maximum has no slope.
    counts = gradients.positive(output - _EPSILON)
    return _of_values(tf.square(difference), 2.0 * difference / (above + 1.0) * counts, positions)


def _log_cosh(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    difference = output - y
    size = tf.abs(difference)
    # log cosh d = |d| + log(1 + e^−2|d|) − log 2
    return _of_values(size + tf.math.log(1.0 + tf.exp(-2.0 * size)) - math.log(2.0), tf.tanh(difference), positions)


def _poisson(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    return _of_values(output - y * tf.math.log(output + _EPSILON), 1.0 - y / (output + _EPSILON), positions)


def _kl_divergence(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    wanted, found = tf.clip_by_value(y, _EPSILON, 1.0), tf.clip_by_value(output, _EPSILON, 1.0)
    # A clipped value has no slope either.
    inside = gradients.positive(output - _EPSILON) * (1.0 - gradients.positive(output - 1.0))
    loss = tf.reduce_sum(wanted * tf.math.log(wanted / found), axis=-1)
    return _of_positions(loss, -wanted / found * inside, tf.zeros_like(loss), positions)


def _hinge(_: LossOptions, output: Tensor, y: Tensor, positions: bool, squared: bool = False) -> PerExample:
    y = _signs(y)
    short = tf.nn.relu(1.0 - y * output)
    hit = tf.cast(tf.equal(output > 0, y > 0), tf.float32)
    if squared:
        return _of_values(tf.square(short), -2.0 * y * short, positions, hit)
    return _of_values(short, -y * gradients.positive(short), positions, hit)


def _signs(y: Tensor) -> Tensor:
    """−1 and 1 in place of 0 and 1, if no label is anything else: as Keras, by the batch."""
    whole = tf.reduce_min(tf.cast(tf.logical_or(tf.equal(y, 0.0), tf.equal(y, 1.0)), tf.float32))
    return y + whole * (y - 1.0)


def _categorical_hinge(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    others = (1.0 - y) * output
    worst = tf.reduce_max(others, axis=-1, keepdims=True)
    short = tf.nn.relu(worst - tf.reduce_sum(y * output, axis=-1, keepdims=True) + 1.0)
    ties = tf.cast(tf.equal(others, worst), tf.float32)
    share = ties / tf.reduce_sum(ties, axis=-1, keepdims=True)
    hit = tf.equal(tf.argmax(output, axis=-1, output_type=tf.int32), tf.argmax(y, axis=-1, output_type=tf.int32))
    gradient = gradients.positive(short) * ((1.0 - y) * share - y)
    return _of_positions(tf.squeeze(short, [-1]), gradient, tf.cast(hit, tf.float32), positions)


def _cosine_similarity(_: LossOptions, output: Tensor, y: Tensor, positions: bool) -> PerExample:
    """−cos of the angle between output and label."""
    inverse = tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(output), axis=-1, keepdims=True), _EPSILON**2))
    found = output * inverse
    wanted = y * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(y), axis=-1, keepdims=True), _EPSILON**2))
    likeness = tf.reduce_sum(found * wanted, axis=-1, keepdims=True)
    loss = -tf.squeeze(likeness, [-1])
    return _of_positions(loss, (likeness * found - wanted) * inverse, tf.zeros_like(loss), positions)


def _binary_focal_crossentropy(options: LossOptions, logits: Tensor, y: Tensor, positions: bool) -> PerExample:
    hit = tf.cast(tf.equal(logits > 0, y > 0.5), tf.float32)
    if options.label_smoothing:
        y = y * (1.0 - options.label_smoothing) + 0.5 * options.label_smoothing
    p = tf.clip_by_value(tf.sigmoid(logits), _EPSILON, 1.0 - _EPSILON)
    slope = p * (1.0 - p)
    entropy = -(y * tf.math.log(p) + (1.0 - y) * tf.math.log(1.0 - p))
    missed = 1.0 - (y * p + (1.0 - y) * (1.0 - p))
    weight = _power(missed, options.gamma)
    # By z: d entropy = p − y; d missed = −(2y − 1)·p(1 − p).
    gradient = (
        weight * (p - y) - options.gamma * _power(missed, options.gamma - 1.0) * (2.0 * y - 1.0) * slope * entropy
    )
    loss = weight * entropy
    if options.apply_class_balancing:
        balance = y * options.alpha + (1.0 - y) * (1.0 - options.alpha)
        loss, gradient = balance * loss, balance * gradient
    return _of_values(loss, gradient, positions, hit)


def _categorical_focal_crossentropy(options: LossOptions, logits: Tensor, y: Tensor, positions: bool) -> PerExample:
    hit = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.argmax(y, axis=-1, output_type=tf.int32))
    if options.label_smoothing:
        y = y * (1.0 - options.label_smoothing) + options.label_smoothing / logits.shape[-1]
    p = tf.clip_by_value(tf.nn.softmax(logits), _EPSILON, 1.0 - _EPSILON)
    log, left = tf.math.log(p), 1.0 - p
    weight = options.alpha * _power(left, options.gamma)
    loss = -tf.reduce_sum(weight * y * log, axis=-1)
    # p·d loss/dp of each class; softmax then takes p times their sum off.
    each = y * (options.alpha * options.gamma * _power(left, options.gamma - 1.0) * p * log - weight)
    gradient = each - p * tf.reduce_sum(each, axis=-1, keepdims=True)
    return _of_positions(loss, gradient, tf.cast(hit, tf.float32), positions)


def _power(base: Tensor, exponent: float) -> Tensor:
    return tf.exp(exponent * tf.math.log(tf.maximum(base, 1e-30)))


def _of_values(loss: Tensor, gradient: Tensor, positions: bool, correct: Tensor | None = None) -> PerExample:
    """Average a loss of each value of the output, as most regressions have it."""
    rank = loss.shape.rank
    axes = [rank - 1] if positions else list(range(1, rank))
    count = float(math.prod(loss.shape[axis] for axis in axes))
    mean = tf.reduce_mean(loss, axis=axes)
    right = tf.zeros_like(mean) if correct is None else tf.reduce_mean(correct, axis=axes)
    return PerExample(mean, gradient / count, right)


def _of_positions(loss: Tensor, gradient: Tensor, correct: Tensor, positions: bool) -> PerExample:
    """Average a loss of each position, whose last axis is gone already."""
    axes = list(range(1, loss.shape.rank))
    if positions or not axes:
        return PerExample(loss, gradient, correct)
    count = float(loss.shape[1:].num_elements())
    return PerExample(tf.reduce_mean(loss, axis=axes), gradient / count, tf.reduce_mean(correct, axis=axes))


_LOSSES: dict[Loss, Callable[[LossOptions, Tensor, Tensor, bool], PerExample]] = {
    "sparse_categorical_crossentropy": _sparse_categorical_crossentropy,
    "categorical_crossentropy": _categorical_crossentropy,
    "binary_crossentropy": _binary_crossentropy,
    "mean_squared_error": _mean_squared_error,
    "mean_absolute_error": _mean_absolute_error,
    "huber": _huber,
    "mean_absolute_percentage_error": _mean_absolute_percentage_error,
    "mean_squared_logarithmic_error": _mean_squared_logarithmic_error,
    "log_cosh": _log_cosh,
    "poisson": _poisson,
    "kl_divergence": _kl_divergence,
    "hinge": _hinge,
    "squared_hinge": partial(_hinge, squared=True),
    "categorical_hinge": _categorical_hinge,
    "cosine_similarity": _cosine_similarity,
    "binary_focal_crossentropy": _binary_focal_crossentropy,
    "categorical_focal_crossentropy": _categorical_focal_crossentropy,
}
