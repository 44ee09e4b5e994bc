"""Gradients written in operators that LiteRT has, where TensorFlow's own would need its full runtime.

TensorFlow's gradient of, say, MaxPool is an operator ``MaxPoolGrad`` that LiteRT lacks. Ops created inside `overridden`
carry another gradient instead, found by ``tf.gradients`` (``GradientTape`` ignores the override map).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from authoring.errors import UnsupportedModelError

Tensor = Any
Gradient = Callable[[Any, Tensor], Any]

_PREFIX = "Fedgrass"


@contextmanager
def overridden() -> Iterator[None]:
    """Give ops that are created inside, in the current graph, the gradients of this module."""
    with tf.compat.v1.get_default_graph().gradient_override_map({name: _PREFIX + name for name in _TABLE}):
        yield


def _relu(op: Any, dy: Tensor) -> Tensor:
    return dy * tf.cast(op.outputs[0] > 0, dy.dtype)


def _bias_add(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    _require_channels_last(op)
    return dy, tf.reduce_sum(dy, axis=list(range(dy.shape.rank - 1)))


def _conv2d(op: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Input by transposed convolution; filter by a convolution with the batch and channel axes swapped.

    The filter's gradient at tap (a, b) sums x[a + s·i, b + s·j] · dy[i, j] over images and positions: a convolution
    of x, whose "channels" are the images, with the kernel dy dilated by the stride s.
    """
    _require_channels_last(op)
    if list(op.get_attr("dilations")) != [1, 1, 1, 1]:
        raise UnsupportedModelError(op.name, "Conv2D with dilation_rate > 1", "use dilation_rate=1")
    x, kernel = op.inputs
    if kernel.shape[2] != x.shape[3]:
        raise UnsupportedModelError(op.name, "Conv2D with groups > 1", "use groups=1 or DepthwiseConv2D")
    strides = op.get_attr("strides")
    padding = op.get_attr("padding").decode()
    dx = tf.nn.conv2d_transpose(dy, kernel, x.shape, strides[1:3], padding)

    rows = _padding(x.shape[1], kernel.shape[0], strides[1], padding)
    columns = _padding(x.shape[2], kernel.shape[1], strides[2], padding)
    images_last = tf.transpose(tf.pad(x, [[0, 0], rows, columns, [0, 0]]), [3, 1, 2, 0])
    taps = tf.nn.conv2d(
        images_last, tf.transpose(dy, [1, 2, 0, 3]), strides=1, padding="VALID", dilations=[strides[1], strides[2]]
    )
    # With a stride, rows and columns that the forward pass never reached give taps beyond the kernel's.
    taps = taps[:, : kernel.shape[0], : kernel.shape[1], :]
    return dx, tf.transpose(taps, [1, 2, 0, 3])


def _max_pool(op: Any, dy: Tensor) -> Tensor:
    """The first of the largest values of each window takes its gradient, as in TensorFlow."""
    _require_channels_last(op)
    x, y = op.inputs[0], op.outputs[0]
    size, strides = list(op.get_attr("ksize"))[1:3], list(op.get_attr("strides"))[1:3]
    if size != strides or size[0] != size[1]:
        raise UnsupportedModelError(
            op.name, f"MaxPool with pool_size {size} and strides {strides}", "use a square pool_size equal to strides"
        )
    k = size[0]
    height, width = x.shape[1:3]
    rows, columns = y.shape[1] * k, y.shape[2] * k
    if rows > height or columns > width:  # SAME
        before = [(rows - height) // 2, (columns - width) // 2]
        pads = [[0, 0], [before[0], rows - height - before[0]], [before[1], columns - width - before[1]], [0, 0]]
        x = tf.pad(x, pads, constant_values=x.dtype.min)
    # One place of all windows at a time, in four dimensions: LiteRT broadcasts comparisons of five slowly.
    remaining, parts = dy, []
    for i, j in itertools.product(range(k), repeat=2):
        largest = tf.equal(x[:, i:rows:k, j:columns:k, :], y)
        parts.append(remaining * tf.cast(largest, dy.dtype))
        remaining = remaining - parts[-1]
    dx = tf.nn.depth_to_space(tf.concat(parts, axis=3), k)
    if rows > height or columns > width:
        return dx[:, before[0] : before[0] + height, before[1] : before[1] + width, :]
    return tf.pad(dx, [[0, 0], [0, height - rows], [0, width - columns], [0, 0]])


def _padding(size: int, kernel: int, stride: int, padding: str) -> list[int]:
    """Zeros before and after an axis, by TensorFlow's rule for SAME."""
    if padding == "VALID":
        return [0, 0]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]


def _require_channels_last(op: Any) -> None:
    layout = op.get_attr("data_format").decode()
    if layout != "NHWC":
        raise UnsupportedModelError(op.name, f"{op.type} in {layout} layout", 'use data_format="channels_last"')


_TABLE: dict[str, Gradient] = {
    "BiasAdd": _bias_add,
    "Conv2D": _conv2d,
    "MaxPool": _max_pool,
    "Relu": _relu,
}

for _name, _function in _TABLE.items():
    tf.RegisterGradient(_PREFIX + _name)(_function)
