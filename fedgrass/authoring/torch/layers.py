"""Products, normalizations, attention, embeddings and Dropout of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import torch

from fedgrass.authoring.convolution import product, transposed_product
from fedgrass.authoring.normalization import normalized as normalized_batch
from fedgrass.authoring.normalization import normalized_groups, normalized_rows
from fedgrass.authoring.torch.elementwise import each
from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, operator, require
from fedgrass.authoring.torch.shapes import repeat_interleave
from fedgrass.authoring.torch.values import Value, permute, reshape

Tensor: TypeAlias = tf.Tensor
Gradient = Callable[[Tensor], tuple[Tensor, ...]]


@operator("linear")
def _linear(context: Context, x: Value, weight: Operand, bias: Operand | None = None) -> Value:
    weight = context.value(weight)
    last = x.rank - 1
    order = [*(axis for axis in x.order if axis != last), last]
    tensor = x.laid(order)
    flat = tf.reshape(tensor, [-1, tensor.shape[-1]])
    # A constant weight keeps LiteRT's FULLY_CONNECTED; a variable one goes by way of the fast product.
    found = (times_transposed if context.trains else _by_constant)(flat, weight.plain)
    if bias is not None:
        found = tf.nn.bias_add(found, context.value(bias).tensor)
    return Value(tf.reshape(found, [*tensor.shape[:-1], found.shape[-1]]), order)


def _by_constant(x: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = tf.matmul(x, weight, transpose_b=True)
    return found


def times_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """X · weightᵀ, without a transposed copy of the weight."""

    def multiply(x: Tensor, weight: Tensor) -> tuple[Tensor, Gradient]:
        return product(x, weight, transpose_b=True), lambda dy: (product(dy, weight), transposed_product(dy, x))

    found: Tensor = tf.custom_gradient(multiply)(x, weight)
    return found


@operator("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul")
def matmul(context: Context, a: Operand, b: Operand) -> Value:
    """Multiply matrices; one-dimensional operands as PyTorch takes them.

    Parameters
    ----------
    context
        The call.
    a, b
        Operands, of one axis or more.
    """
    a, b = context.value(a), context.value(b)
    rows, columns = a.rank == 1, b.rank == 1
    a = reshape(a, [1, *a.shape]) if rows else a
    b = reshape(b, [*b.shape, 1]) if columns else b
    found = _matmul(a, b)
    shape = list(found.shape)
    if rows:
        del shape[-2]
    if columns:
        del shape[-1]
    return reshape(found, shape)


def _matmul(a: Value, b: Value) -> Value:
    if b.rank == 2:
        flat = tf.reshape(a.plain, [1, -1, a.shape[-1]])
        # A transpose that was only noted becomes a flag of the product: nothing is copied.
        tensor, turned = _matrix(b)
        found = tf.matmul(flat, tensor[None], transpose_b=turned)
        return Value(tf.reshape(found, [*a.shape[:-1], b.shape[1]]))
    rank = max(a.rank, b.rank)
    left, left_turned = _matrix(reshape(a, [1] * (rank - a.rank) + list(a.shape)))
    right, right_turned = _matrix(reshape(b, [1] * (rank - b.rank) + list(b.shape)))
    return Value(tf.matmul(left, right, transpose_a=left_turned, transpose_b=right_turned))


def _matrix(x: Value) -> tuple[Tensor, bool]:
    """A tensor, and whether its last two axes lie the other way round."""
    turned = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    return (x.tensor, True) if x.order == turned else (x.plain, False)


@operator("addmm", "baddbmm", "addmv", "addbmm")
def _addmm(context: Context, x: Operand, a: Operand, b: Operand, beta: float = 1, alpha: float = 1) -> Value:
    found = matmul(context, a, b)
    return each(context, lambda p, q: beta * p + alpha * q, x, found)


def _normalized(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(x − mean) / √(variance + ε) over these axes, with its gradient in closed form."""

    def normalize(x: Tensor) -> tuple[Tensor, Gradient]:
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=True)
        scale = tf.math.rsqrt(variance + epsilon)
        y = (x - mean) * scale

        # Closed form of layer normalization (Ba et al., https://arxiv.org/abs/1607.06450).
        def gradient(dy: Tensor) -> tuple[Tensor]:
            mean_dy = tf.reduce_mean(dy, axes, keepdims=True)
            mean_dy_y = tf.reduce_mean(dy * y, axes, keepdims=True)
            return ((dy - mean_dy - y * mean_dy_y) * scale,)

        return y, gradient

    found: Tensor = tf.custom_gradient(normalize)(x)
    return found


def _scale_and_offset(
    context: Context, weight: Operand | None, bias: Operand | None, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return (
        tf.ones(shape) if weight is None else context.value(weight).plain,
        tf.zeros(shape) if bias is None else context.value(bias).plain,
    )


def _affine(context: Context, y: Value, weight: Operand | None, bias: Operand | None, shape: Sequence[int]) -> Value:
    if weight is not None:
        y = each(context, tf.multiply, y, reshape(context.value(weight), shape))
    return y if bias is None else each(context, tf.add, y, reshape(context.value(bias), shape))


@operator("layer_norm")
def _layer_norm(
    context: Context,
    x: Value,
    shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    epsilon: float,
    *_: object,
) -> Value:
    if len(shape) == 1:
        order = [*(axis for axis in x.order if axis != x.rank - 1), x.rank - 1]
        return Value(normalized_rows(x.laid(order), *_scale_and_offset(context, weight, bias, shape), epsilon), order)
    axes = range(x.rank - len(shape), x.rank)
    y = _normalized(x.tensor, sorted(x.axes(axes)), epsilon)
    return _affine(context, x.like(y), weight, bias, shape)


@operator("native_layer_norm")
def _native_layer_norm(context: Context, *arguments: Any) -> list[Value]:
    return [_layer_norm(context, *arguments)]


@operator("rms_norm", "_fused_rms_norm")
def _rms_norm(context: Context, x: Value, shape: Sequence[int], weight: Operand | None, epsilon: float | None) -> Value:
    axes = sorted(x.axes(range(x.rank - len(shape), x.rank)))
    squares = tf.reduce_mean(tf.square(x.tensor), axes, keepdims=True)
    # PyTorch's default of RMSNorm: the resolution of the dtype.
    smallest = float(np.finfo(np.float32).eps) if epsilon is None else epsilon
    return _affine(context, x.like(x.tensor * tf.math.rsqrt(squares + smallest)), weight, None, shape)


@operator("group_norm")
def _group_norm(
    context: Context,
    x: Value,
    groups: int,
    weight: Operand | None,
    bias: Operand | None,
    epsilon: float,
    *_: object,
) -> Value:
    order = _channels_last(x)
    affine = _scale_and_offset(context, weight, bias, [x.shape[1]])
    return Value(normalized_groups(x.laid(order), *affine, groups, epsilon), order)


def _channels_last(x: Value) -> list[int]:
    """Where normalizations and products want the channels, and the other axes as they lie."""
    return [0, *(axis for axis in x.order if axis not in (0, 1)), 1]


@operator("instance_norm")
def _instance_norm(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    variance: Operand | None,
    by_input: bool,
    momentum: float,
    epsilon: float,
    *_: object,
) -> Value:
    require(mean is None, "InstanceNorm with track_running_stats", "use track_running_stats=False")
    # Each channel is a group of its own.
    return _group_norm(context, x, x.shape[1], weight, bias, epsilon)


def _batch_norm(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    variance: Operand | None,
    epsilon: float,
) -> tuple[Value, Tensor, Tensor]:
    """By the batch's own statistics if none are given; returns them, [C]."""
    order = [*(axis for axis in x.order if axis != 1), 1]
    tensor = x.laid(order)
    scale, offset = _scale_and_offset(context, weight, bias, [x.shape[1]])
    if mean is None:
        y, *moments = normalized_batch(tensor, scale, offset, epsilon)
        return Value(y, order), moments[0], moments[1]
    moments = [context.value(mean).tensor, context.value(variance).tensor]
    rows = tf.reshape(tensor, [-1, x.shape[1]])
    y = (rows - moments[0]) * tf.math.rsqrt(moments[1] + epsilon) * scale + offset
    return Value(tf.reshape(y, tensor.shape), order), moments[0], moments[1]


@operator("_native_batch_norm_legit_functional")
def _batch_norm_training(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    variance: Operand | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> list[Value | torch.Tensor | None]:
    if not training:
        return [_batch_norm(context, x, weight, bias, mean, variance, epsilon)[0], None, None, mean, variance]
    y, batch_mean, batch_variance = _batch_norm(context, x, weight, bias, None, None, epsilon)
    # PyTorch normalizes by the biased variance, and keeps a moving average of the unbiased one.
    count = math.prod(x.shape) / x.shape[1]
    unbiased = batch_variance * (count / max(count - 1.0, 1.0))
    moved = [
        Value(old + momentum * (new - old))
        for old, new in ((context.value(mean).tensor, batch_mean), (context.value(variance).tensor, unbiased))
    ]
    return [y, None, None, *moved]


@operator("_native_batch_norm_legit")
def _batch_norm_of_the_batch(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    training: bool,
    momentum: float,
    epsilon: float,
    *_: object,
) -> list[Value | torch.Tensor | None]:
    return [_batch_norm(context, x, weight, bias, None, None, epsilon)[0]]


@operator("_native_batch_norm_legit_no_training")
def _batch_norm_inference(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    variance: Operand | None,
    momentum: float,
    epsilon: float,
) -> list[Value | torch.Tensor | None]:
    return [_batch_norm(context, x, weight, bias, mean, variance, epsilon)[0]]


@operator("batch_norm")
def _batch_norm_plain(
    context: Context,
    x: Value,
    weight: Operand | None,
    bias: Operand | None,
    mean: Operand | None,
    variance: Operand | None,
    training: bool,
    momentum: float,
    epsilon: float,
    *_: object,
) -> Value:
    if training:
        mean = variance = None
    return _batch_norm(context, x, weight, bias, mean, variance, epsilon)[0]


@operator("scaled_dot_product_attention")
def _attention(
    context: Context,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Value:
    query, key, value = (context.value(one) for one in (query, key, value))
    # Grouped-query attention: several queries share a key.
    if grouped and key.shape[-3] != query.shape[-3]:
        times = query.shape[-3] // key.shape[-3]
        key, value = (repeat_interleave(context, one, times, -3) for one in (key, value))
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    axes = list(range(key.rank))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    # The scale goes to the query, the smaller of the two: scores grow with the square of the length.
    scores = _matmul(query.like(query.tensor * factor), permute(key, axes))
    if causal:
        # As a constant of the graph: the length is fixed.
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is not None:
        scores = each(context, tf.add, scores, _additive(context, mask))
    weights = scores.like(tf.nn.softmax(scores.plain))
    return _matmul(dropped(context, weights, dropout), value)


def _additive(context: Context, mask: Value | torch.Tensor) -> Value:
    """A mask of truth values as what is added to scores: 0 where they count."""
    if isinstance(mask, torch.Tensor):
        if mask.dtype == torch.bool:
            # −1e9 and not −inf: exp of it is 0 all the same, and a row that is masked whole stays finite.
            return context.value(torch.where(mask, 0.0, -1e9))
        return context.value(mask.clamp(min=-1e9))
    if mask.tensor.dtype == tf.bool:
        return Value((tf.cast(mask.tensor, tf.float32) - 1.0) * 1e9, mask.order)
    return Value(tf.maximum(mask.tensor, -1e9), mask.order)


def dropped(context: Context, x: Value, rate: float, shape: Sequence[int | None] | None = None) -> Value:
    """Set a share of x to zero in training, one draw for each place of ``shape``, and scale the rest up.

    Parameters
    ----------
    context
        The call: whether it trains, and what draws.
    x
        Any shape.
    rate
        Share that is set to zero, 0 to 1.
    shape
        Of what is drawn; None where an axis keeps its size, 1 where one draw counts for all of it.
    """
    if context.draws is None or not rate:
        return x
    if shape is None:
        return x.like(context.draws.dropout(x.tensor, rate))
    return x.like(context.draws.dropout(x.tensor, rate, [shape[axis] for axis in x.order]))


@operator("dropout")
def _dropout(context: Context, x: Value, rate: float, training: bool) -> Value:
    return dropped(context, x, rate) if training else x


@operator("native_dropout")
def _native_dropout(context: Context, x: Value, rate: float, training: bool | None) -> list[Value]:
    return [_dropout(context, x, rate, training is not False)]


@operator("feature_dropout")
def _feature_dropout(context: Context, x: Value, rate: float, training: bool) -> Value:
    return dropped(context, x, rate, [None, None, *([1] * (x.rank - 2))]) if training else x


@operator("one_hot")
def _one_hot(context: Context, x: Value, classes: int) -> Value:
    require(classes > 0, "one_hot without num_classes", "give num_classes")
    return Value(tf.one_hot(x.plain, classes, dtype=tf.int32))


@operator("cosine_similarity")
def _cosine(context: Context, a: Operand, b: Operand, axis: int, epsilon: float) -> Value:
    norm, total = OPERATORS["linalg_vector_norm"], OPERATORS["sum"]
    lengths = each(
        context,
        lambda p, q: tf.maximum(p, epsilon) * tf.maximum(q, epsilon),
        *(norm(context, context.value(one), 2, [axis], False) for one in (a, b)),
    )
    return each(context, tf.divide, total(context, each(context, tf.multiply, a, b), [axis], False), lengths)
