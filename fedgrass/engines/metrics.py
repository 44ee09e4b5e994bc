"""Losses and right answers in NumPy, for engines and models whose framework gives outputs only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedgrass.bundle import Loss, LossOptions
from fedgrass.tensors import Array

BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
"""Losses of sigmoids."""

CLASSIFIERS = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    *BINARY,
)
"""Losses for which accuracy means something."""

# Keras' epsilon: probabilities and denominators are kept this far from 0.
_SMALLEST = 1e-7
_ROUNDING = 1e-2
"""By how much float32 probabilities of many classes may add up to another sum than 1."""


def correct(loss: Loss, output: Array, y: Array) -> Array:
    """Return how right each example is [n], from 0 to 1; zeros for a regression.

    Parameters
    ----------
    output
        [n, …]: probabilities or logits.
    y
        [n, …]: labels as the loss takes them.
    """
    # Argmax is the same of logits and of probabilities.
    if loss == "sparse_categorical_crossentropy":
        return _per_example(output.argmax(axis=-1) == y)
    if loss in ("categorical_crossentropy", "categorical_focal_crossentropy"):
        return _per_example(output.argmax(axis=-1) == y.argmax(axis=-1))
    if loss in BINARY:
        # Beyond 0..1 they can only be logits, whose middle is 0.
        middle = 0.5 if output.size and output.min() >= 0 and output.max() <= 1 else 0.0
        return _per_example((output > middle) == (y.reshape(output.shape) > 0.5))
    return np.zeros(len(output))


def losses(loss: Loss, output: Array, y: Array, options: LossOptions | None = None) -> Array:
    """Compute the loss of each example, as `fedgrass.authoring.losses` does in the graph.

    Parameters
    ----------
    loss
        Name of the loss.
    output
        What the model gave [n, …]; probabilities of a classifier.
    y
        Labels [n, …]; class numbers for ``sparse_categorical_crossentropy``.
    options
        Of the loss; the defaults if None.

    Returns
    -------
    Array
        float64 [n].

    Examples
    --------
    >>> losses("mean_squared_error", np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]])).tolist()
    [0.0, 4.0]
    """
    output, options = np.asarray(output, np.float64), options or LossOptions()
    if loss in CLASSIFIERS:
        # As Keras clips: a confident wrong answer costs 16, not infinity.
        output = np.clip(output, _SMALLEST, 1 - _SMALLEST)
    if loss == "sparse_categorical_crossentropy":
        chosen: Array = np.take_along_axis(output, np.asarray(y)[..., np.newaxis], axis=-1)
        return _per_example(-np.log(chosen[..., 0]))
    y = np.asarray(y, np.float64).reshape(output.shape)
    if options.label_smoothing and loss in CLASSIFIERS:
        # Smoothing moves a share to the uniform distribution over the classes.
        classes = 2 if loss in BINARY else output.shape[-1]
        y = np.asarray(y * (1 - options.label_smoothing) + options.label_smoothing / classes)
    return _per_example(_FORMULAS[loss](output, y, options))


def _focal(p: Array, y: Array, options: LossOptions) -> Array:
    # Lin et al., "Focal loss for dense object detection", ICCV 2017: easy examples weigh (1 - p)^γ.
    missed = 1 - (y * p + (1 - y) * (1 - p))
    balance = y * options.alpha + (1 - y) * (1 - options.alpha) if options.apply_class_balancing else 1.0
    return np.asarray(balance * missed**options.gamma * _binary(p, y, options))


def _binary(p: Array, y: Array, _: LossOptions) -> Array:
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log(1 - p)))


def _huber(output: Array, y: Array, options: LossOptions) -> Array:
    difference = np.abs(output - y)
    # Quadratic up to delta, linear beyond, in one formula.
    inner = np.minimum(difference, options.delta)
    return np.asarray(inner * (difference - inner / 2))


def _hinge(output: Array, y: Array, _: LossOptions) -> Array:
    # Keras takes labels of 0 and 1 as well as -1 and 1.
    signs = 2 * y - 1 if np.isin(y, (0, 1)).all() else y
    return np.asarray(np.maximum(1 - signs * output, 0))


def _categorical_hinge(output: Array, y: Array, _: LossOptions) -> Array:
    worst = ((1 - y) * output).max(axis=-1)
    return np.asarray(np.maximum(worst - (y * output).sum(axis=-1) + 1, 0))


def _kl_divergence(output: Array, y: Array, _: LossOptions) -> Array:
    y, output = np.clip(y, _SMALLEST, 1), np.clip(output, _SMALLEST, 1)
    return np.asarray((y * np.log(y / output)).sum(axis=-1))


def _cosine(output: Array, y: Array, _: LossOptions) -> Array:
    lengths = [np.maximum(np.linalg.norm(value, axis=-1), _SMALLEST) for value in (output, y)]
    return np.asarray(-(output * y).sum(axis=-1) / lengths[0] / lengths[1])


_FORMULAS: dict[Loss, Callable[[Array, Array, LossOptions], Array]] = {
    "categorical_crossentropy": lambda p, y, _: -(y * np.log(p)).sum(axis=-1),
    "categorical_focal_crossentropy": lambda p, y, o: -(o.alpha * (1 - p) ** o.gamma * y * np.log(p)).sum(axis=-1),
    "binary_crossentropy": _binary,
    "binary_focal_crossentropy": _focal,
    "mean_squared_error": lambda p, y, _: (p - y) ** 2,
    "mean_absolute_error": lambda p, y, _: np.abs(p - y),
    "huber": _huber,
    "mean_absolute_percentage_error": lambda p, y, _: 100 * np.abs(p - y) / np.maximum(np.abs(y), _SMALLEST),
    "mean_squared_logarithmic_error": lambda p, y, _: (
        (np.log1p(np.maximum(p, _SMALLEST)) - np.log1p(np.maximum(y, _SMALLEST))) ** 2
    ),
    # By logaddexp, since cosh of a large difference overflows.
    "log_cosh": lambda p, y, _: np.logaddexp(p - y, y - p) - np.log(2),
    "poisson": lambda p, y, _: p - y * np.log(p + _SMALLEST),
    "kl_divergence": _kl_divergence,
    "hinge": _hinge,
    "squared_hinge": lambda p, y, o: _hinge(p, y, o) ** 2,
    "categorical_hinge": _categorical_hinge,
    "cosine_similarity": _cosine,
}
"""Of each value, or of each position where a loss joins the last axis."""


def probabilities(loss: Loss, output: Array) -> Array:
    """Return a classifier's output as probabilities, be it these or logits; another model's as it is."""
    if loss not in CLASSIFIERS or not output.size:
        return output
    # A model may end in a softmax or not; its file does not say which.
    shares = bool(output.min() >= 0 and output.max() <= 1)
    if loss in BINARY:
        return output if shares else sigmoid(output)
    return output if shares and np.abs(output.sum(axis=-1) - 1).max() < _ROUNDING else softmax(output)


def softmax(logits: Array) -> Array:
    """Return probabilities [n, classes]."""
    # The largest exponent is 0, so nothing overflows.
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Return probabilities; no logit overflows."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def _per_example(values: Array) -> Array:
    return np.asarray(np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1))
