"""Sums, broadcasts and their gradients, in shapes of few axes.

XNNPACK refuses reductions over more than six axes (and the step then fails on the device), and leaves BROADCAST_TO out,
which is seventy times slower than a multiplication by ones. Neighbouring axes that are treated alike are therefore joined
first: no sum and no broadcast has more axes than it has changes between kept and reduced ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from fedgrass.authoring.known import known
from fedgrass.authoring.windows import ALL, crop, pad

Tensor: TypeAlias = tf.Tensor

MAX_AXES = 5
"""Joined axes of one reduction."""


def total(x: Tensor, axes: Collection[int]) -> Tensor:
    """Sum x over some axes, which stay as axes of size 1."""
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    groups = _groups(x.shape, axes)
    while len(groups) > MAX_AXES and any(reduced for _, reduced in groups):
        last = max(place for place, (_, reduced) in enumerate(groups) if reduced)
        sizes = [size for size, _ in groups]
        x = tf.reshape(x, [math.prod(sizes[:last]), sizes[last], math.prod(sizes[last + 1 :])])
        x = tf.reduce_sum(x, axis=1)
        rest = groups[:last] + groups[last + 1 :]
        groups = _groups([size for size, _ in rest], {place for place, (_, reduced) in enumerate(rest) if reduced})
    over = [place for place, (_, reduced) in enumerate(groups) if reduced]
    if over:
        x = tf.reduce_sum(tf.reshape(x, [size for size, _ in groups]), axis=over)
    return tf.reshape(x, kept)


def spread(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat x along its axes of size 1 to ``shape``: the adjoint of `total`."""
    axes = {axis for axis, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want}
    groups = _groups(shape, axes)
    # One repeated run at a time: the product has three axes, whatever the shape.
    while any(reduced for _, reduced in groups):
        first = next(place for place, (_, reduced) in enumerate(groups) if reduced)
        before = math.prod(size for size, _ in groups[:first])
        after = math.prod(size for size, reduced in groups[first + 1 :] if not reduced)
        size = groups[first][0]
        x = tf.reshape(x, [before, 1, after]) * tf.ones([1, size, 1], x.dtype)
        groups[first] = (size, False)
    return tf.reshape(x, shape)


def unbroadcast(dy: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum dy over the axes along which an operand of this shape was repeated."""
    # Shapes are equal in most operations of a network; nothing is summed there.
    if tuple(dy.shape) == tuple(shape):
        return dy
    wide = [1] * (dy.shape.rank - len(shape)) + list(shape)
    axes = {axis for axis, (have, want) in enumerate(zip(dy.shape, wide, strict=True)) if have != want}
    return tf.reshape(total(dy, axes), shape)


def _groups(shape: Sequence[int], axes: Collection[int]) -> list[tuple[int, bool]]:
    """Sizes of runs of axes that are all reduced, or all kept; axes of size 1 belong to any run."""
    marked = [(size, axis in axes) for axis, size in enumerate(shape) if size != 1]
    runs = itertools.groupby(marked, key=lambda entry: entry[1])
    return [(math.prod(size for size, _ in run), reduced) for reduced, run in runs]


def _sum(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    shape = op.inputs[0].shape
    axes = {int(axis) % shape.rank for axis in np.atleast_1d(known(op.inputs[1]))}
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return spread(tf.reshape(dy, kept), shape), None


def _mean(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    # The gradient of a mean is that of the sum, divided by the number of values in each.
    return _sum(op, dy * (op.outputs[0].shape.num_elements() / op.inputs[0].shape.num_elements()))


def _broadcast_to(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    return unbroadcast(dy, op.inputs[0].shape), None


def _tile(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    """An axis that is repeated is seen as two, of which the first is summed."""
    shape = op.inputs[0].shape
    pairs = [(dy.shape[axis] // size, size) for axis, size in enumerate(shape)]
    split = tf.reshape(dy, list(itertools.chain.from_iterable(pairs)))
    return tf.reshape(total(split, range(0, 2 * shape.rank, 2)), shape), None


def _mirror_pad(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    """What was mirrored gives its gradient, turned round, to where it came from."""
    edge = 1 if op.get_attr("mode") == b"REFLECT" else 0
    for axis, (before, after) in enumerate(known(op.inputs[1]).tolist()):
        size, outer = op.inputs[0].shape[axis], [ALL] * axis
        found = crop(dy, *outer, slice(before, before + size))
        ends = (
            (slice(0, before), edge, before),
            (slice(before + size, before + size + after), size - edge - after, after),
        )
        for part, start, count in ends:
            if count:
                pads = [[0, 0]] * axis + [[start, size - start - count]] + [[0, 0]] * (dy.shape.rank - axis - 1)
                found += pad(tf.reverse(crop(dy, *outer, part), [axis]), pads)
        dy = found
    return dy, None


_Pair = tuple[Tensor | None, Tensor | None]


def _operands(op: tf.Operation, *by_operand: Callable[[], Tensor]) -> _Pair:
    """Gradients by both operands; none by a constant, which nothing asks for."""
    first, second = (
        # TensorFlow would build the gradient of a constant, too, and LiteRT would compute it.
        None if x.op.type == "Const" else unbroadcast(gradient(), x.shape)
        for x, gradient in zip(op.inputs, by_operand, strict=True)
    )
    return first, second


def _add(op: tf.Operation, dy: Tensor) -> _Pair:
    return _operands(op, lambda: dy, lambda: dy)


def _sub(op: tf.Operation, dy: Tensor) -> _Pair:
    return _operands(op, lambda: dy, lambda: -dy)


def _mul(op: tf.Operation, dy: Tensor) -> _Pair:
    a, b = op.inputs
    return _operands(op, lambda: dy * b, lambda: dy * a)


def _real_div(op: tf.Operation, dy: Tensor) -> _Pair:
    _, b = op.inputs
    # −a/b² is −(a/b)/b: the quotient is there already.
    return _operands(op, lambda: dy / b, lambda: -dy * op.outputs[0] / b)


def _squared_difference(op: tf.Operation, dy: Tensor) -> _Pair:
    a, b = op.inputs
    return _operands(op, lambda: 2.0 * dy * (a - b), lambda: 2.0 * dy * (b - a))


GRADIENTS: dict[str, Callable[..., Tensor | Sequence[Tensor | None]]] = {
    "Add": _add,
    "AddV2": _add,
    "BroadcastTo": _broadcast_to,
    "Mean": _mean,
    "MirrorPad": _mirror_pad,
    "Mul": _mul,
    "RealDiv": _real_div,
    "SquaredDifference": _squared_difference,
    "Sub": _sub,
    "Sum": _sum,
    "Tile": _tile,
}
"""Gradients by operator, for `fedgrass.authoring.gradients`."""
