"""Operators that move, join, cut, choose or reduce."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import tensorflow as tf
import torch
from numpy.typing import NDArray

from fedgrass.authoring.torch.elementwise import as_float, each
from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, Sizes, operator, require
from fedgrass.authoring.torch.values import Value, permute, reshape
from fedgrass.authoring.windows import concat, pad

Tensor: TypeAlias = tf.Tensor


@operator("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy")
def _view(context: Context, x: Value, shape: Sequence[int]) -> Value:
    return reshape(x, shape)


@operator("flatten")
def _flatten(context: Context, x: Value, first: int, last: int) -> Value:
    # A tensor without axes counts as one of rank 1, as in PyTorch.
    first, last = first % max(x.rank, 1), last % max(x.rank, 1)
    shape = x.shape
    return reshape(x, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]])


@operator("unflatten")
def _unflatten(context: Context, x: Value, axis: int, sizes: Sequence[int]) -> Value:
    axis %= x.rank
    shape, sizes = x.shape, list(sizes)
    # The product of the known sizes is negative for the -1 among them.
    if -1 in sizes:
        sizes[sizes.index(-1)] = shape[axis] // -math.prod(sizes)
    return reshape(x, [*shape[:axis], *sizes, *shape[axis + 1 :]])


@operator("permute")
def _permute(context: Context, x: Value, axes: Sequence[int]) -> Value:
    return permute(x, axes)


@operator("transpose", "swapaxes")
def _transpose(context: Context, x: Value, first: int, second: int) -> Value:
    axes = list(range(x.rank))
    axes[first], axes[second] = axes[second], axes[first]
    return permute(x, axes)


@operator("t", "numpy_T", "mT")
def _t(context: Context, x: Value) -> Value:
    return x if x.rank < 2 else _transpose(context, x, -1, -2)


@operator("movedim")
def _movedim(context: Context, x: Value, source: Sizes, target: Sizes) -> Value:
    # Targets first, so that sorting is by them: each axis is put in once all before it lie.
    pairs = zip(*([one] if isinstance(one, int) else one for one in (target, source)), strict=True)
    moved = sorted((t % x.rank, s % x.rank) for t, s in pairs)
    axes = [axis for axis in range(x.rank) if axis not in {s for _, s in moved}]
    for t, s in moved:
        axes.insert(t, s)
    return permute(x, axes)


@operator("unsqueeze")
def _unsqueeze(context: Context, x: Value, axis: int) -> Value:
    axis %= x.rank + 1
    order = [a + (a >= axis) for a in x.order]
    # The new axis lies last in memory, which is free wherever PyTorch counts it.
    return Value(tf.expand_dims(x.tensor, x.rank), [*order, axis])


@operator("squeeze")
def _squeeze(context: Context, x: Value, axes: Sizes | None = None) -> Value:
    named = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    gone = {axis % x.rank for axis in named if x.shape[axis] == 1}
    return reshape(x, [size for axis, size in enumerate(x.shape) if axis not in gone])


@operator("expand", "expand_copy", "broadcast_to")
def _expand(context: Context, x: Value, shape: Sequence[int], *_: object) -> Value:
    sizes = [1] * (len(shape) - x.rank) + list(x.shape)
    wanted = [have if want == -1 else want for have, want in zip(sizes, shape, strict=True)]
    x = reshape(x, sizes)
    if sizes == wanted:
        return x
    for axis, (have, want) in enumerate(zip(sizes, wanted, strict=True)):
        if have != want:
            x = x.like(concat([x.tensor] * want, x.axis(axis)))
    return x


@operator("expand_as")
def _expand_as(context: Context, x: Value, other: Value | torch.Tensor) -> Value:
    return _expand(context, x, other.shape)


@operator("repeat", "tile")
def _repeat(context: Context, x: Value, times: Sequence[int]) -> Value:
    x = reshape(x, [1] * (len(times) - x.rank) + list(x.shape))
    for axis, count in enumerate(times):
        if count > 1:
            x = x.like(concat([x.tensor] * count, x.axis(axis)))
    return x


@operator("repeat_interleave")
def repeat_interleave(context: Context, x: Value, times: int, axis: int | None = None, *_: object) -> Value:
    """Repeat each place of an axis; ``times`` may be a tensor to PyTorch, which is refused.

    Parameters
    ----------
    context
        The call.
    x
        Any shape.
    times
        How often each place is repeated.
    axis
        As PyTorch numbers it; None repeats the flattened tensor's places.
    """
    require(isinstance(times, int), "repeat_interleave by a tensor", "repeat by a number")
    if axis is None:
        x, axis = reshape(x, [-1]), 0
    axis %= x.rank
    order = [*(a for a in range(x.rank) if a < axis), axis, *(a for a in range(x.rank) if a > axis)]
    # A new axis after the repeated one: its copies then lie side by side once both are one.
    found = tf.expand_dims(x.laid(order), axis + 1)
    shape = list(x.shape)
    shape[axis] *= times
    return Value(tf.reshape(concat([found] * times, axis + 1), shape))


@operator("cat", "concat", "concatenate")
def _cat(context: Context, parts: Sequence[Operand], axis: int = 0) -> Value:
    # PyTorch lets an empty tensor of shape (0,) be joined to anything.
    values = [value for value in map(context.value, parts) if value.shape != (0,)]
    if any(value.is_float for value in values):
        values = [value.like(as_float(value.tensor)) for value in values]
    # The largest decides the order: the smaller ones are cheaper to transpose.
    lead = max(values, key=lambda value: math.prod(value.shape))
    return Value(concat([value.laid(lead.order) for value in values], lead.axis(axis)), lead.order)


@operator("stack")
def _stack(context: Context, parts: Sequence[Operand], axis: int = 0) -> Value:
    return _cat(context, [_unsqueeze(context, context.value(part), axis) for part in parts], axis)


def cut(x: Value, axis: int, start: int, stop: int) -> Value:
    """Part of an axis.

    Parameters
    ----------
    x
        Any shape.
    axis
        As PyTorch numbers it.
    start, stop
        Places, of which the last is left out.
    """
    if (start, stop) == (0, x.shape[axis]):
        return x
    place = x.axis(axis)
    return x.like(x.tensor[(slice(None),) * place + (slice(start, stop),)])


@operator("slice", "slice_copy")
def _slice(context: Context, x: Value, axis: int, start: int | None, stop: int | None, step: int) -> Value:
    size = x.shape[axis]
    first, last, step = slice(start, stop, step).indices(size)
    last = max(first, last)
    if step == 1:
        return cut(x, axis, first, last)
    return _chosen(x, axis, list(range(first, last, step)))


def _chosen(x: Value, axis: int, indices: Sequence[int]) -> Value:
    """Places of an axis, in this order: joined runs, or a product with a matrix of zeros and ones if there are many."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    # Whole numbers cannot be multiplied by a float matrix without losing digits.
    if len(runs) <= 8 or not x.is_float:
        return x.like(concat([cut(x, axis, *run).tensor for run in runs], x.axis(axis)))
    matrix = np.zeros([len(indices), x.shape[axis]], np.float32)
    matrix[range(len(indices)), list(indices)] = 1.0
    return along(x, axis, matrix)


def along(x: Value, axis: int, matrix: NDArray[np.float32]) -> Value:
    """Multiply one axis by a constant matrix [new, old].

    Parameters
    ----------
    x
        Any shape.
    axis
        As PyTorch numbers it.
    matrix
        [new, old], float32.
    """
    place = x.axis(axis)
    sizes = [int(size) for size in x.tensor.shape]
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    sizes[place] = matrix.shape[0]
    # The last axis: the matrix goes to the right, so no transpose is needed.
    if after == 1:
        found = tf.matmul(tf.reshape(x.tensor, [1, before, -1]), matrix.T[None].copy())
    else:
        found = tf.matmul(matrix[None], tf.reshape(x.tensor, [before, -1, after]))
    return x.like(tf.reshape(found, sizes))


@operator("select", "select_copy")
def _select(context: Context, x: Value, axis: int, index: int) -> Value:
    axis %= x.rank
    index %= x.shape[axis]
    part = cut(x, axis, index, index + 1)
    return reshape(part, [size for a, size in enumerate(part.shape) if a != axis])


@operator("narrow")
def _narrow(context: Context, x: Value, axis: int, start: int, length: int) -> Value:
    return cut(x, axis, start, start + length)


@operator("split", "split_with_sizes", "split_copy", "split_with_sizes_copy")
def _split(context: Context, x: Value, size: Sizes, axis: int = 0) -> list[Value]:
    total = x.shape[axis]
    sizes = [min(size, total - i) for i in range(0, total, size)] if isinstance(size, int) else list(size)
    ends = np.cumsum(sizes)
    return [cut(x, axis, int(end) - one, int(end)) for one, end in zip(sizes, ends, strict=True)]


@operator("chunk")
def _chunk(context: Context, x: Value, count: int, axis: int = 0) -> list[Value]:
    return _split(context, x, -(-x.shape[axis] // count), axis)


@operator("unfold")
def _unfold(context: Context, x: Value, axis: int, size: int, step: int) -> Value:
    axis %= x.rank
    order = [*(a for a in range(x.rank) if a != axis), axis]
    starts = range(0, x.shape[axis] - size + 1, step)
    return _stack(context, [permute(cut(x, axis, start, start + size), order) for start in starts], axis)


@operator("tensor_split")
def _tensor_split(context: Context, x: Value, count: Sizes, axis: int = 0) -> list[Value]:
    sizes = [len(part) for part in np.array_split(np.arange(x.shape[axis]), count)]
    return _split(context, x, sizes, axis)


@operator("unbind", "unbind_copy")
def _unbind(context: Context, x: Value, axis: int = 0) -> list[Value]:
    return [_select(context, x, axis, index) for index in range(x.shape[axis])]


@operator("flip")
def _flip(context: Context, x: Value, axes: Sequence[int]) -> Value:
    for axis in axes:
        x = x.like(tf.reverse(x.tensor, [x.axis(axis)]))
    return x


@operator("roll")
def _roll(context: Context, x: Value, shifts: Sizes, axes: Sizes = ()) -> Value:
    shape = x.shape
    named = [axes] if isinstance(axes, int) else list(axes)
    if not named:
        x, named = reshape(x, [-1]), [0]
    for shift, axis in zip([shifts] if isinstance(shifts, int) else shifts, named, strict=True):
        size = x.shape[axis]
        if shift % size:
            middle = size - shift % size
            parts = [cut(x, axis, middle, size), cut(x, axis, 0, middle)]
            x = x.like(concat([part.tensor for part in parts], x.axis(axis)))
    return reshape(x, shape)


@operator("constant_pad_nd")
def _constant_pad(context: Context, x: Value, widths: Sequence[int], value: float = 0.0) -> Value:
    # Negative widths cut, and come first: what is cut needs no padding.
    for axis, low, high in _widths(x, widths):
        x = cut(x, axis, max(-low, 0), x.shape[axis] - max(-high, 0))
    pads = [[0, 0]] * x.rank
    for axis, low, high in _widths(x, widths):
        pads[x.axis(axis)] = [max(low, 0), max(high, 0)]
    return x.like(pad(x.tensor, pads, float(value)))


@operator("pad")
def _pad(context: Context, x: Value, widths: Sequence[int], mode: str, value: float | None) -> Value:
    if mode == "constant":
        return _constant_pad(context, x, widths, value or 0.0)
    for axis, low, high in _widths(x, widths):
        indices = np.pad(np.arange(x.shape[axis]), (low, high), _PADS[mode])
        x = _chosen(x, axis, indices.tolist())
    return x


_PADS: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _enter_pad(mode: str) -> None:
    def apply(context: Context, x: Value, widths: Sequence[int], *_: object) -> Value:
        return _pad(context, x, widths, mode, None)

    for rank in (1, 2, 3):
        OPERATORS[f"{mode}_pad{rank}d" if mode != "reflect" else f"reflection_pad{rank}d"] = apply


for _mode in ("reflect", "replicate"):
    _enter_pad(_mode)


def _widths(x: Value, widths: Sequence[int]) -> list[tuple[int, int, int]]:
    pairs = zip(widths[::2], widths[1::2], strict=True)
    # PyTorch lists widths from the last axis backwards.
    return [(x.rank - 1 - i, low, high) for i, (low, high) in enumerate(pairs) if low or high]


def _triangular(function: Callable[[NDArray[np.float32], int], NDArray[np.float32]]) -> Callable[..., Value]:
    def apply(context: Context, x: Value, diagonal: int = 0) -> Value:
        mask = function(np.ones(x.shape[-2:], np.float32), diagonal)
        return each(context, tf.multiply, x, torch.from_numpy(mask.copy()))

    return apply


OPERATORS["tril"], OPERATORS["triu"] = _triangular(np.tril), _triangular(np.triu)


def _kind(x: Value, options: Sequence[object]) -> torch.dtype:
    """Return the dtype that is asked for, else that of x; every float is float32 in the graph."""
    for one in options:
        if isinstance(one, torch.dtype):
            return torch.float32 if one.is_floating_point else one
    if x.tensor.dtype == tf.bool:
        return torch.bool
    return torch.float32 if x.is_float else torch.int64


def _filled(value: float) -> Callable[..., Value]:
    def apply(context: Context, x: Value, *options: object) -> Value:
        kind = _kind(x, options)
        # TensorFlow takes its dtype from the Python value: a mask has to be of bool for a selection.
        number = bool(value) if kind == torch.bool else float(value) if kind.is_floating_point else int(value)
        return Value(tf.fill(x.shape, tf.constant(number)))

    return apply


OPERATORS["ones_like"], OPERATORS["zeros_like"] = _filled(1), _filled(0)
OPERATORS["empty_like"] = _filled(0)


@operator("full_like")
def _full_like(context: Context, x: Value, value: float, *options: object) -> Value:
    return _filled(value)(context, x, *options)


def _new(value: float) -> Callable[..., torch.Tensor]:
    def apply(context: Context, x: Value, shape: Sequence[int], *options: object) -> torch.Tensor:
        return torch.full(list(shape), value, dtype=_kind(x, options))

    return apply


OPERATORS["new_zeros"], OPERATORS["new_ones"], OPERATORS["new_empty"] = _new(0.0), _new(1.0), _new(0.0)


@operator("new_full")
def _new_full(context: Context, x: Value, shape: Sequence[int], value: float, *options: object) -> torch.Tensor:
    return torch.full(list(shape), value, dtype=_kind(x, options))
