"""Operators of PyTorch that look places up: embeddings and indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import torch

from fedgrass.authoring.torch.elementwise import as_float, each
from fedgrass.authoring.torch.registry import Context, Operand, operator, require
from fedgrass.authoring.torch.shapes import along
from fedgrass.authoring.torch.values import Value, reshape


@operator("embedding")
def _embedding(context: Context, table: Operand, indices: Operand, padding: int = -1, *_: object) -> Value:
    table, indices = context.value(table), context.value(indices)
    rows = table.plain
    if padding >= 0:  # it is read, but never moved
        kept = np.ones([table.shape[0], 1], np.float32)
        kept[padding] = 0.0
        rows = rows * kept + tf.stop_gradient(rows) * (1.0 - kept)
    return Value(tf.gather(rows, tf.cast(indices.plain, tf.int32)))


@operator("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(
    context: Context,
    table: Operand,
    indices: Operand,
    offsets: Operand,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Operand | None = None,
    include_last: bool = False,
    padding: int = -1,
) -> list[Value | None]:
    """Sum, mean or largest of the vectors of tokens [B, T]; padding is in none, and counts in no mean."""
    flat = context.value(indices)
    require(isinstance(offsets, torch.Tensor), "bags whose sizes the data say", "give tokens [B, T] without offsets")
    count = len(offsets)  # type: ignore[arg-type]
    length = flat.shape[0] // count
    even = not include_last and torch.equal(offsets, torch.arange(count) * length)
    require(even, "bags of several sizes", "give tokens [B, T] without offsets")
    require(not by_frequency, "scale_grad_by_freq=True", "leave it out")
    tokens = tf.reshape(flat.plain, [count, length])
    rows = _embedding(context, table, Value(tokens)).plain
    kept = tf.expand_dims(tf.cast(tf.not_equal(tokens, tf.cast(padding, tokens.dtype)), tf.float32), -1)
    if mode == _LARGEST:
        require(padding < 0, "mode='max' with padding_idx", "leave padding_idx out")
        return [Value(tf.reduce_max(rows, axis=1)), None, None, None]
    if weights is not None:
        rows = rows * tf.reshape(context.value(weights).plain, [count, length, 1])
    total = tf.reduce_sum(rows * kept, axis=1)
    if mode == _MEAN:
        total = total / tf.maximum(tf.reduce_sum(kept, axis=1), 1.0)
    return [Value(total), None, None, None]


_MEAN, _LARGEST = 1, 2
"""As PyTorch numbers the modes of an EmbeddingBag; 0 is the sum."""


@operator("index_select")
def _index_select(context: Context, x: Operand, axis: int, indices: Operand) -> Value:
    return take(context, context.value(x), axis, indices)


def take(context: Context, x: Value, axis: int, indices: Operand) -> Value:
    """Places of an axis: by a product where they are known, else along the first axis.

    Parameters
    ----------
    context
        The call.
    x
        Any shape.
    axis
        As PyTorch numbers it.
    indices
        Whole numbers, of any shape; it takes the axis' place.
    """
    axis %= x.rank
    if isinstance(indices, torch.Tensor) and indices.ndim == 1 and x.is_float and axis:
        # Known places are a constant matrix: a product has a gradient, GATHER along an inner axis has none here.
        matrix = np.eye(x.shape[axis], dtype=np.float32)[indices.numpy()]
        return along(x, axis, matrix)
    order = [axis, *(a for a in range(x.rank) if a != axis)]
    places = context.value(indices)
    found = tf.gather(x.laid(order), tf.cast(places.plain, tf.int32))
    count = places.rank
    # [indices …, the other axes] back to where the axis was.
    rest = [a if a < axis else a + count - 1 for a in order[1:]]
    return Value(found, [*range(axis, axis + count), *rest])


@operator("index", "_unsafe_index")
def _index(context: Context, x: Operand, indices: Sequence[Operand | None]) -> Value:
    x = context.value(x)
    named = [(axis, one) for axis, one in enumerate(indices) if one is not None]
    if len(named) == 1:
        axis, one = named[0]
        if isinstance(one, torch.Tensor) and one.dtype == torch.bool:
            return take(context, x, axis, one.nonzero().flatten())
        return take(context, x, axis, _from_start(context, one, x.shape[axis]))
    axes = [axis for axis, _ in named]
    require(axes == list(range(len(axes))), "indexing by several tensors", "index the first axes, or one")
    sizes = x.shape[: len(axes)]
    # Several indices become one into the joined axes, as memory has them.
    flat = context.value(0)
    for (_, one), size in zip(named, sizes, strict=True):
        flat = each(
            context, lambda total, place, size=size: total * size + place, flat, _from_start(context, one, size)
        )
    return take(context, reshape(x, [math.prod(sizes), *x.shape[len(axes) :]]), 0, flat)


def _from_start(context: Context, indices: Operand, size: int) -> Value | torch.Tensor:
    if isinstance(indices, torch.Tensor):
        # Negative indices count from the end.
        return indices.remainder(size)
    return each(context, tf.math.floormod, indices, size)


@operator("gather")
def _gather(context: Context, x: Operand, axis: int, indices: Operand, *_: object) -> Value:
    """By a product with ones at the places: LiteRT has no gradient of it otherwise."""
    x, places = context.value(x), context.value(indices)
    axis %= x.rank
    order = [*(a for a in range(x.rank) if a != axis), axis]
    require(
        all(x.shape[a] == places.shape[a] for a in order[:-1]),
        "gather of a part of the other axes",
        "slice them before",
    )
    hot = tf.one_hot(places.laid(order), x.shape[axis], dtype=tf.float32)
    found = tf.reduce_sum(hot * tf.expand_dims(as_float(x.laid(order)), x.rank - 1), axis=-1)
    return Value(found, order)
