"""Gradients written in operators that LiteRT has, where TensorFlow's own would need its full runtime.

TensorFlow's gradient of, say, MaxPool is an operator ``MaxPoolGrad`` that LiteRT lacks. Ops created inside `overridden`
carry another gradient instead, found by ``tf.gradients`` (``GradientTape`` ignores the override map). Comparisons are
avoided: XNNPACK has none, and a step between two of its partitions is slow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.ops import math_ops

from fedgrass.authoring import broadcasts
from fedgrass.authoring.convolution import product, transposed_product
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.known import known
from fedgrass.authoring.windows import Windows, concat, output_and_padding, pad
from fedgrass.errors import ConfigurationError
from fedgrass.parts import GRADIENTS
from fedgrass.tensors import Array

Tensor: TypeAlias = tf.Tensor

Gradient: TypeAlias = Callable[..., "Tensor | Sequence[Tensor | None]"]
"""From the operator and the gradients that arrive at its outputs to those at its inputs; None for an input that has none."""

_PREFIX = "Fedgrass"

_HUGE = 3e38
"""Times this, every positive normal float32 is at least 1."""


@dataclass(frozen=True)
class OperatorGradient:
    """A gradient that another package brings, under the entry point group ``fedgrass.gradients``.

    Parameters
    ----------
    operator
        TensorFlow's type of the operator, such as ``Prod``.
    function
        See `Gradient`; made of operators that LiteRT has, for fixed shapes.
    """

    operator: str
    function: Gradient


@contextmanager
def overridden() -> Iterator[None]:
    """Give ops that are created inside, in the current graph, the gradients of this module and of installed packages.

    Raises
    ------
    ConfigurationError
        If a package's gradient cannot be imported, or is of an operator that has one already.
    """
    # Under names of our own: TensorFlow's own gradients stay as they are for everybody else in the process.
    names = {name: _PREFIX + name for name in (*_TABLE, *_installed())}
    with tf.compat.v1.get_default_graph().gradient_override_map(names):
        yield


@cache
def _installed() -> tuple[str, ...]:
    """Register the gradients of installed packages, once, and return their operators."""
    found: dict[str, str] = {}
    for name in GRADIENTS.installed():
        part: OperatorGradient = GRADIENTS.get(name)
        before = "fedgrass itself" if part.operator in _TABLE else found.get(part.operator)
        if before is not None:
            raise ConfigurationError(f"gradient {name!r}: operator {part.operator} has one already, of {before}")
        found[part.operator] = name
        tf.RegisterGradient(_PREFIX + part.operator)(part.function)
    return tuple(found)


def gradients(y: Sequence[Tensor], by: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor | None]:
    """``tf.gradients`` whose sums of several paths are additions: XNNPACK leaves ADD_N out.

    Parameters
    ----------
    y
        Tensors, of which there may be several.
    by
        What they are derived by.
    upstream
        Gradient that arrives at each of ``y``, of its shape.
    """
    # TensorFlow has no option for how the gradients of several paths are summed, so its function is exchanged meanwhile.
    before = math_ops.add_n
    math_ops.add_n = added
    try:
        found: list[Tensor | None] = tf.gradients(y, by, grad_ys=upstream)
    finally:
        math_ops.add_n = before
    return found


def added(parts: Sequence[Tensor], name: str | None = None) -> Tensor:
    """Sum tensors of one shape; stands for ``add_n``."""
    del name
    return functools.reduce(lambda total, part: total + part, parts)


def positive(x: Tensor) -> Tensor:
    """1 where x > 0, else 0."""
    # Without a comparison: relu(x) times a huge number is beyond 1 for every positive normal float.
    return tf.minimum(tf.nn.relu(x) * _HUGE, 1.0)


def _relu(op: tf.Operation, dy: Tensor) -> Tensor:
    # The output is not negative.
    return dy * tf.minimum(op.outputs[0] * _HUGE, 1.0)


def _relu6(op: tf.Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * tf.minimum(y * _HUGE, 1.0) * tf.minimum((6.0 - y) * _HUGE, 1.0)


def _leaky_relu(op: tf.Operation, dy: Tensor) -> Tensor:
    alpha = op.get_attr("alpha")
    return dy * (alpha + (1.0 - alpha) * positive(op.inputs[0]))


def _elu(op: tf.Operation, dy: Tensor) -> Tensor:
    # Where x > 0 the output is x, elsewhere e^x − 1.
    return dy * (tf.minimum(op.outputs[0], 0.0) + 1.0)


def _sigmoid(op: tf.Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * (y - y * y)


def _tanh(op: tf.Operation, dy: Tensor) -> Tensor:
    return dy * (1.0 - tf.square(op.outputs[0]))


def _rsqrt(op: tf.Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return -0.5 * dy * y * y * y


def _sqrt(op: tf.Operation, dy: Tensor) -> Tensor:
    return 0.5 * dy / op.outputs[0]


def _log(op: tf.Operation, dy: Tensor) -> Tensor:
    return dy / op.inputs[0]


def _mat_mul(op: tf.Operation, dy: Tensor) -> tuple[Tensor, Tensor]:
    a, b = op.inputs
    # The products below are of operands as they stand.
    if op.get_attr("transpose_a") or op.get_attr("transpose_b"):
        raise UnsupportedModelError(op.name, "MatMul with a transposed operand", "transpose it before")
    return product(dy, b, transpose_b=True), transposed_product(a, dy)


def _bias_add(op: tf.Operation, dy: Tensor) -> tuple[Tensor, Tensor]:
    _require_channels_last(op)
    # Of parts, rows and channels the rows first: XNNPACK adds one by one, and each addition to a large sum rounds.
    sums = tf.reduce_sum(dy, axis=1) if dy.shape.rank == 3 else dy
    return dy, tf.reduce_sum(sums, axis=list(range(sums.shape.rank - 1)))


def _conv2d(op: tf.Operation, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Input by transposed convolution; filter by a convolution with the batch and channel axes swapped.

    For images too large for `fedgrass.authoring.convolution`. The filter's gradient at tap (a, b) sums x[a + s·i, b + s·j] ·
    dy[i, j] over images and positions: a convolution of x, whose "channels" are the images, with the kernel dy dilated
    by the stride s.
    """
    _require_channels_last(op)
    if list(op.get_attr("dilations")) != [1, 1, 1, 1]:
        raise UnsupportedModelError(op.name, "Conv2D with dilation_rate > 1", "use dilation_rate=1")
    x, kernel = op.inputs
    if kernel.shape[2] != x.shape[3]:
        raise UnsupportedModelError(op.name, "Conv2D with groups > 1", "use groups=1 or DepthwiseConv2D")
    strides = op.get_attr("strides")
    padding = op.get_attr("padding").decode()
    # A transposed convolution is the adjoint of the forward one, with its strides.
    dx = tf.nn.conv2d_transpose(dy, kernel, x.shape, strides[1:3], padding)

    rows = _padding(x.shape[1], kernel.shape[0], strides[1], padding)
    columns = _padding(x.shape[2], kernel.shape[1], strides[2], padding)
    images_last = tf.transpose(pad(x, [[0, 0], rows, columns, [0, 0]]), [3, 1, 2, 0])
    taps = tf.nn.conv2d(
        images_last, tf.transpose(dy, [1, 2, 0, 3]), strides=1, padding="VALID", dilations=[strides[1], strides[2]]
    )
    # With a stride, rows and columns that the forward pass never reached give taps beyond the kernel's.
    taps = taps[:, : kernel.shape[0], : kernel.shape[1], :]
    return dx, tf.transpose(taps, [1, 2, 0, 3])


def _max_pool(op: tf.Operation, dy: Tensor) -> Tensor:
    """The first of the largest values of each window takes its gradient, as in TensorFlow."""
    x, y = op.inputs[0], op.outputs[0]
    windows = _pool_windows(op)
    remaining, parts = dy, []
    for tap in windows.taps(x, outside=x.dtype.min)[:-1]:
        # 0 where this tap is the largest, which then takes all that remained; else unchanged.
        left = remaining * tf.minimum((y - tap) * _HUGE, 1.0)
        parts.append(remaining - left)
        remaining = left
    return windows.scatter([*parts, remaining])


def _avg_pool(op: tf.Operation, dy: Tensor) -> Tensor:
    x = op.inputs[0]
    windows = _pool_windows(op)
    size = list(op.get_attr("ksize"))[1:3]
    # With SAME, what lies outside does not count.
    inside = [
        _inside(*axis, op.get_attr("padding").decode())
        for axis in zip(x.shape[1:3], size, list(op.get_attr("strides"))[1:3], strict=True)
    ]
    # Each place of a window had the same weight, so each gets the same share back.
    share = dy / np.outer(*inside)[None, :, :, None].astype(np.float32)
    return windows.scatter([share] * (size[0] * size[1]))


def _inside(size: int, kernel: int, stride: int, padding: str) -> NDArray[np.intp]:
    count, before = output_and_padding(size, kernel, stride, padding)
    first = np.arange(count) * stride - before
    return np.minimum(first + kernel, size) - np.maximum(first, 0)


def _pool_windows(op: tf.Operation) -> Windows:
    _require_channels_last(op)
    size, strides = list(op.get_attr("ksize"))[1:3], list(op.get_attr("strides"))[1:3]
    return Windows(op.inputs[0].shape, (size[0], size[1]), (strides[0], strides[1]), op.get_attr("padding").decode())


def _gather(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None, None]:
    """Rows that were taken several times sum their gradients; the axis that was taken from is put first for that."""
    table, indices, axis = op.inputs[0], op.inputs[1], int(known(op.inputs[2])) % op.inputs[0].shape.rank
    batch, shape = op.get_attr("batch_dims"), list(table.shape)
    taken, lead, size = indices.shape.rank - batch, math.prod(shape[:batch]), shape[axis]
    order = [*range(batch), *range(axis, axis + taken), *range(batch, axis), *range(axis + taken, dy.shape.rank)]
    places = tf.reshape(indices, [lead, -1])
    # Each batch's places are counted on from the last one's, as if there were one long table.
    if lead > 1:
        places += tf.range(lead, dtype=places.dtype)[:, None] * size
    rest = [*shape[batch:axis], *shape[axis + 1 :]]
    rows = tf.reshape(_permuted(dy, order), [lead * places.shape[1], *rest])
    found = tf.math.unsorted_segment_sum(rows, tf.reshape(places, [-1]), lead * size)
    found = tf.reshape(found, [*shape[:batch], size, *rest])
    back = [*range(batch), *range(batch + 1, axis + 1), batch, *range(axis + 1, len(shape))]
    return _permuted(found, back), None, None


def _permuted(x: Tensor, order: Sequence[int]) -> Tensor:
    return x if list(order) == sorted(order) else tf.transpose(x, order)


def _strided_slice(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None, None, None]:
    shape = op.inputs[0].shape
    begin, end, strides = map(known, op.inputs[1:])
    masks = {name: op.get_attr(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    ranges = _ranges(shape, begin, end, strides, masks)
    dy = tf.reshape(dy, [len(taken) for taken in ranges])
    pads = []
    for axis, (taken, size) in enumerate(zip(ranges, shape, strict=True)):
        # A reversed range is a forward one of reversed gradients.
        if taken.step < 0:
            dy, taken = tf.reverse(dy, [axis]), taken[::-1]
        if taken.step > 1 and len(taken) > 1:
            dy = _with_gaps(dy, axis, taken.step)
        before = taken.start if len(taken) else 0
        pads.append([before, size - before - dy.shape[axis]])
    return pad(dy, pads), None, None, None


def _ranges(shape: tf.TensorShape, begin: Array, end: Array, strides: Array, masks: dict[str, int]) -> list[range]:
    """Return which places of each axis were taken."""
    found: list[range] = []
    ellipses = bin(masks["ellipsis"]).count("1")
    named = len(begin) - ellipses - bin(masks["new_axis"]).count("1")
    for i in range(len(begin)):
        if masks["ellipsis"] >> i & 1:
            found += [range(size) for size in shape[len(found) : len(found) + len(shape) - named]]
        elif not masks["new_axis"] >> i & 1:
            size = shape[len(found)]
            if masks["shrink_axis"] >> i & 1:
                first = int(begin[i]) % size
                # Kept as an axis of length 1 here: the reshape above restores it from dy.
                found.append(range(first, first + 1))
                continue
            first = None if masks["begin"] >> i & 1 else int(begin[i])
            last = None if masks["end"] >> i & 1 else int(end[i])
            found.append(range(size)[first : last : int(strides[i])])
    return found + [range(size) for size in shape[len(found) :]]


def _with_gaps(x: Tensor, axis: int, stride: int) -> Tensor:
    """Put zeros between the places of an axis, so that they lie ``stride`` apart."""
    shape = list(x.shape)
    pads = [[0, 0]] * (len(shape) + 1)
    pads[axis + 1] = [0, stride - 1]
    wide = pad(tf.expand_dims(x, axis + 1), pads)
    wide = tf.reshape(wide, [*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]])
    return wide[(slice(None),) * axis + (slice(0, (shape[axis] - 1) * stride + 1),)]


def _slice(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None, None]:
    begin = known(op.inputs[1])
    pads = [[b, n - b - k] for b, n, k in zip(begin, op.inputs[0].shape, dy.shape, strict=True)]
    return pad(dy, pads), None, None


def _transpose(op: tf.Operation, dy: Tensor) -> tuple[Tensor, None]:
    # argsort of a permutation is its inverse.
    return tf.transpose(dy, np.argsort(known(op.inputs[1]))), None


def _concat(op: tf.Operation, dy: Tensor) -> tuple[Tensor | None, ...]:
    parts = op.inputs[:-1]
    axis = int(known(op.inputs[-1])) % dy.shape.rank
    ends = np.cumsum([part.shape[axis] for part in parts])
    before = (slice(None),) * axis
    places = [(*before, slice(end - part.shape[axis], end)) for end, part in zip(ends, parts, strict=True)]
    return (*(dy[place] for place in places), None)


def _split(op: tf.Operation, *dy: Tensor) -> tuple[None, Tensor]:
    return None, concat(dy, int(known(op.inputs[0])))


def _split_v(op: tf.Operation, *dy: Tensor) -> tuple[Tensor, None, None]:
    return concat(dy, int(known(op.inputs[2]))), None, None


def _padding(size: int, kernel: int, stride: int, padding: str) -> list[int]:
    """Zeros before and after an axis."""
    count, before = output_and_padding(size, kernel, stride, padding)
    return [before, max((count - 1) * stride + kernel - size - before, 0)]


def _require_channels_last(op: tf.Operation) -> None:
    layout = op.get_attr("data_format").decode()
    if layout != "NHWC":
        raise UnsupportedModelError(op.name, f"{op.type} in {layout} layout", 'use data_format="channels_last"')


_TABLE: dict[str, Gradient] = {
    **broadcasts.GRADIENTS,
    "AvgPool": _avg_pool,
    "BiasAdd": _bias_add,
    "ConcatV2": _concat,
    "Conv2D": _conv2d,
    "Elu": _elu,
    "GatherV2": _gather,
    "LeakyRelu": _leaky_relu,
    "Log": _log,
    "MatMul": _mat_mul,
    "MaxPool": _max_pool,
    "Relu": _relu,
    "Relu6": _relu6,
    "Rsqrt": _rsqrt,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Split": _split,
    "SplitV": _split_v,
    "Sqrt": _sqrt,
    "StridedSlice": _strided_slice,
    "Tanh": _tanh,
    "Transpose": _transpose,
}

for _name, _function in _TABLE.items():
    tf.RegisterGradient(_PREFIX + _name)(_function)
