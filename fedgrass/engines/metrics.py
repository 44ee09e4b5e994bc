"""Losses and right answers in NumPy, for engines and models whose framework gives outputs only."""

from __future__ import annotations

import numpy as np

from fedgrass.bundle import Loss
from fedgrass.tensors import Array

CLASSIFIERS = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
"""Losses for which accuracy means something."""

_SMALLEST = 1e-7


def correct(loss: Loss, output: Array, y: Array) -> Array:
    """Return how right each example is [n], from 0 to 1; zeros for a regression.

    Parameters
    ----------
    output
        [n, …]: probabilities or logits.
    y
        [n, …]: labels as the loss takes them.
    """
    if loss == "sparse_categorical_crossentropy":
        return np.asarray(output.argmax(axis=-1) == y, np.float64)
    if loss == "categorical_crossentropy":
        return np.asarray(output.argmax(axis=-1) == y.argmax(axis=-1), np.float64)
    if loss == "binary_crossentropy":
        # Beyond 0..1 they can only be logits, whose middle is 0.
        middle = 0.5 if output.size and output.min() >= 0 and output.max() <= 1 else 0.0
        return _per_example((output > middle) == (y.reshape(output.shape) > 0.5))
    return np.zeros(len(output))


def losses(loss: Loss, output: Array, y: Array) -> Array:
    """Compute the loss of each example, as `fedgrass.authoring.losses` does in the graph.

    Parameters
    ----------
    loss
        Name of the loss.
    output
        What the model gave [n, …]; probabilities of a classifier.
    y
        Labels [n, …]; class numbers for ``sparse_categorical_crossentropy``.

    Returns
    -------
    Array
        float64 [n].

    Examples
    --------
    >>> losses("mean_squared_error", np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]])).tolist()
    [0.0, 4.0]
    """
    output = np.asarray(output, np.float64)
    if loss in CLASSIFIERS:
        output = np.clip(output, _SMALLEST, 1 - _SMALLEST)
    if loss == "sparse_categorical_crossentropy":
        chosen: Array = np.take_along_axis(output, np.asarray(y)[..., np.newaxis], axis=-1)
        return np.asarray(-np.log(chosen[..., 0]))
    y = np.asarray(y, np.float64).reshape(output.shape)
    if loss == "categorical_crossentropy":
        return np.asarray(-(y * np.log(output)).sum(axis=-1))
    if loss == "binary_crossentropy":
        return _per_example(-(y * np.log(output) + (1 - y) * np.log(1 - output)))
    difference = np.abs(output - y)
    if loss == "mean_squared_error":
        return _per_example(difference**2)
    if loss == "mean_absolute_error":
        return _per_example(difference)
    return _per_example(np.where(difference <= 1, difference**2 / 2, difference - 0.5))


def softmax(logits: Array) -> Array:
    """Return probabilities [n, classes]."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Return probabilities; no logit overflows."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def _per_example(values: Array) -> Array:
    return np.asarray(np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1))
