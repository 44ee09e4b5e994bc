"""Operators that reduce axes, or run along one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import torch

from fedgrass.authoring.torch.elementwise import as_float, each
from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, Result, operator, require
from fedgrass.authoring.torch.shapes import along, cut
from fedgrass.authoring.torch.values import Value, reshape

Tensor: TypeAlias = tf.Tensor
Axes: TypeAlias = "int | Sequence[int] | torch.dtype | None"
"""Axes to reduce: None for all; a dtype where the schema of an operator without axes has one in their place."""


def _reduction(function: Callable[..., Tensor], *, integer: bool = False) -> Callable[..., Value]:
    def apply(context: Context, x: Value, axes: Axes = None, keep: bool | torch.dtype = False, *_: object) -> Value:
        return reduced(x, axes, bool(keep) and not isinstance(keep, torch.dtype), function, integer=integer)

    return apply


def reduced(x: Value, axes: Axes, keep: bool, function: Callable[..., Tensor], *, integer: bool = False) -> Value:
    """Reduce PyTorch's axes (all if none are named) where they lie.

    Parameters
    ----------
    x
        Any shape.
    axes
        Axes that go; see `Axes`.
    keep
        Whether they stay, with length 1.
    function
        ``tf.reduce_sum`` or its like.
    integer
        Whether whole numbers are reduced as they are; else as float32.
    """
    named = list(range(x.rank)) if axes is None or axes == [] or isinstance(axes, torch.dtype) else axes
    gone = sorted({axis % x.rank for axis in ([named] if isinstance(named, int) else named)}) if x.rank else []
    tensor = x.tensor if integer else as_float(x.tensor)
    if not gone:
        return x.like(tensor)
    found = function(tensor, axis=sorted(x.axes(gone)), keepdims=keep)
    if keep:
        return Value(found, x.order)
    # Axes are numbered again without those that are gone; the order in memory stays.
    left = [axis for axis in x.order if axis not in gone]
    ranks = {axis: rank for rank, axis in enumerate(sorted(left))}
    return Value(found, [ranks[axis] for axis in left])


for _key, _function in {
    "sum": tf.reduce_sum,
    "mean": tf.reduce_mean,
    "amax": tf.reduce_max,
    "amin": tf.reduce_min,
}.items():
    OPERATORS[_key] = _reduction(_function)


def _extreme(
    function: Callable[..., Tensor], index: Callable[..., Tensor], pair: Callable[..., Tensor]
) -> Callable[..., Result]:
    def apply(context: Context, x: Value, axis: Operand | None = None, keep: bool = False) -> Result:
        if axis is None:
            return reduced(x, None, False, function, integer=True)
        if not isinstance(axis, int):
            return each(context, pair, x, axis)
        return [reduced(x, axis, keep, function, integer=True), _index(x, axis, keep, index)]

    return apply


OPERATORS["max"] = _extreme(tf.reduce_max, tf.argmax, tf.maximum)
OPERATORS["min"] = _extreme(tf.reduce_min, tf.argmin, tf.minimum)


def _index(x: Value, axis: int, keep: bool, function: Callable[..., Tensor]) -> Value:
    found = function(x.plain, axis=axis % x.rank, output_type=tf.int32)
    return Value(tf.expand_dims(found, axis % x.rank) if keep else found)


@operator("argmax")
def _argmax(context: Context, x: Value, axis: int | None = None, keep: bool = False) -> Value:
    return _index(reshape(x, [-1]) if axis is None else x, axis or 0, keep and axis is not None, tf.argmax)


OPERATORS["any"] = _reduction(
    lambda t, **k: tf.reduce_max(tf.cast(tf.cast(t, tf.bool), tf.int32), **k) > 0, integer=True
)
OPERATORS["all"] = _reduction(
    lambda t, **k: tf.reduce_min(tf.cast(tf.cast(t, tf.bool), tf.int32), **k) > 0, integer=True
)


def _variance(root: bool, pair: bool) -> Callable[..., Result]:
    def apply(
        context: Context, x: Value, axes: Axes = None, correction: float | None = 1, keep: bool = False
    ) -> Result:
        # The old overload var(unbiased) has the flag in the place of the axes.
        if isinstance(axes, bool):
            correction, axes = int(axes), None
        correction = 1 if correction is None else int(correction)
        named = list(range(x.rank)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else list(axes)
        count = math.prod(x.shape[axis] for axis in named)
        mean = reduced(x, named, True, tf.reduce_mean)
        # Two passes: the mean of squares minus the square of the mean loses digits.
        squares = x.like(tf.square(x.tensor - mean.laid(x.order)))
        found = reduced(squares, named, keep, tf.reduce_sum)
        found = found.like(found.tensor * (1.0 / max(count - correction, 1e-12)))
        found = found.like(tf.sqrt(found.tensor)) if root else found
        return [found, reduced(x, named, keep, tf.reduce_mean)] if pair else found

    return apply


OPERATORS["var"], OPERATORS["std"] = _variance(False, False), _variance(True, False)
OPERATORS["var_mean"], OPERATORS["std_mean"] = _variance(False, True), _variance(True, True)


@operator("prod")
def _prod(context: Context, x: Value, axis: int | torch.dtype | None = None, keep: bool = False, *_: object) -> Value:
    """By multiplications: the operator's own gradient is not LiteRT's."""
    if not isinstance(axis, int):
        x, axis, keep = reshape(x, [-1]), 0, False
    found = cut(x, axis, 0, 1)
    for place in range(1, x.shape[axis]):
        found = found.like(found.tensor * cut(x, axis, place, place + 1).tensor)
    return found if keep else reduced(found, axis, False, tf.reduce_sum, integer=True)


@operator("logsumexp")
def _logsumexp(context: Context, x: Value, axes: Axes, keep: bool = False) -> Value:
    top = reduced(x, axes, True, tf.reduce_max)
    # The largest value is taken off before exp, or it overflows; its gradient cancels out.
    top = top.like(tf.stop_gradient(top.tensor))
    total = reduced(each(context, lambda v, t: tf.exp(v - t), x, top), axes, True, tf.reduce_sum)
    found = each(context, lambda s, t: tf.math.log(s) + t, total, top)
    return found if keep else reduced(found, axes, False, tf.reduce_sum)


@operator("linalg_vector_norm", "norm")
def _norm(
    context: Context, x: Value, order: float | None = 2, axes: Axes = None, keep: bool = False, *_: object
) -> Value:
    order = 2 if order is None else order
    if order == 2:
        squares = reduced(x.like(tf.square(x.tensor)), axes, keep, tf.reduce_sum)
        return squares.like(tf.sqrt(squares.tensor))
    if order in (math.inf, float("inf")):
        return reduced(x.like(tf.abs(x.tensor)), axes, keep, tf.reduce_max)
    require(order == 1, f"a norm of order {order}", "use order 1, 2 or inf")
    return reduced(x.like(tf.abs(x.tensor)), axes, keep, tf.reduce_sum)


@operator("cumsum")
def _cumsum(context: Context, x: Value, axis: int, *_: object) -> Value:
    if not x.is_float:
        return x.like(tf.cumsum(tf.cast(x.tensor, tf.int32), x.axis(axis)))
    size = x.shape[axis]
    # A product with a triangle of ones, whose gradient is a product too.
    return along(x, axis, np.tril(np.ones([size, size], np.float32)))
