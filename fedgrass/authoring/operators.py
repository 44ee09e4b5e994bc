"""Forward operators exchanged, while a model is traced, for ones that LiteRT has or runs faster.

TensorFlow lets a graph override gradients but not the operators themselves, and Keras calls these functions by name:
so the names are pointed elsewhere for the time of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from fedgrass.authoring import convolution, exchanged, gradients
from fedgrass.authoring.depthwise import depthwise_convolution
from fedgrass.authoring.normalization import batch_normalization, group_normalization, layer_normalization
from fedgrass.authoring.patching import patched
from fedgrass.authoring.randomness import drawn
from fedgrass.authoring.recurrence import Recurrence, conv_lstm, time_distributed

Tensor: TypeAlias = tf.Tensor


@contextmanager
def substituted(step: Tensor | None) -> Iterator[None]:
    """Trace a model inside this.

    Parameters
    ----------
    step
        Number of the training step, int32, from which random layers draw; none outside training.
    """
    with ExitStack() as stack:
        for owner, name, function in (
            (tf, "eye", _eye),
            (tf.nn, "bias_add", convolution.bias_add),
            (tf.nn, "relu", convolution.relu),
            (tf.nn, "convolution", _convolution),
            (tf.nn, "depthwise_conv2d", _depthwise_conv2d),
            (tf.nn, "separable_conv2d", _separable_conv2d),
            (tf.nn, "gelu", _gelu),
            (keras.layers.BatchNormalization, "call", batch_normalization),
            (keras.layers.LayerNormalization, "call", layer_normalization),
            (keras.layers.GroupNormalization, "call", group_normalization),
        ):
            stack.enter_context(patched(owner, name, function))
        draws = stack.enter_context(drawn(step))
        stack.enter_context(recurrent(Recurrence(training=step is not None, turns=draws.turns)))
        stack.enter_context(exchanged.for_training())
        stack.enter_context(gradients.overridden())
        yield


@contextmanager
def recurrent(recurrence: Recurrence) -> Iterator[None]:
    """Trace recurrent layers, and layers applied to each step, in this way."""
    with (
        patched(backend, "rnn", recurrence.rnn),
        patched(keras.layers.TimeDistributed, "call", time_distributed),
        patched(ConvLSTMCell, "call", conv_lstm),
    ):
        yield


def _eye(
    num_rows: int | Tensor,
    num_columns: int | Tensor | None = None,
    batch_shape: Sequence[int] | None = None,
    dtype: Any = tf.float32,
    name: str | None = None,
) -> Tensor:
    """Return ones on the diagonal as a constant: LiteRT would have to fill the diagonal each time, and cannot."""
    sizes = [num_rows, num_rows if num_columns is None else num_columns]
    rows, columns = (tf.get_static_value(size) for size in sizes)
    if rows is None or columns is None or batch_shape is not None:
        return _tf_eye(*sizes, batch_shape=batch_shape, dtype=dtype, name=name)
    return tf.constant(np.eye(int(rows), int(columns)), dtype, name=name)


_tf_eye = tf.eye
_tf_convolution = tf.nn.convolution


def _convolution(
    x: Tensor,
    kernel: Tensor,
    strides: int | Sequence[int],
    padding: str,
    data_format: str,
    dilations: int | Sequence[int],
) -> Tensor:
    rank = x.shape.rank - 2
    plain = x.shape[-1] == kernel.shape[-2] and set(np.atleast_1d(dilations)) == {1}
    # What the products do not cover goes to TensorFlow's own operator.
    if data_format not in ("NHWC", "NWC") or rank > 2 or not plain:
        return _tf_convolution(x, kernel, strides, padding, data_format=data_format, dilations=dilations)
    rows, columns = (1, *np.broadcast_to(strides, rank))[-2:]
    if rank == 1:
        x, kernel = tf.expand_dims(x, 1), tf.expand_dims(kernel, 0)
    y = convolution.convolution(x, tf.convert_to_tensor(kernel), (int(rows), int(columns)), padding)
    # Patches beyond the bound: LiteRT's own convolution, slower and within memory.
    if y is None:
        y = tf.nn.conv2d(x, kernel, [int(rows), int(columns)], padding)
    return tf.squeeze(y, [1]) if rank == 1 else y


_tf_depthwise_conv2d = tf.nn.depthwise_conv2d


def _depthwise_conv2d(
    x: Tensor,
    kernel: Tensor,
    strides: Sequence[int],
    padding: str,
    data_format: str,
    dilations: Sequence[int] | None,
) -> Tensor:
    if data_format != "NHWC" or (dilations is not None and set(dilations) != {1}):
        return _tf_depthwise_conv2d(x, kernel, strides, padding, data_format=data_format, dilations=dilations)
    return depthwise_convolution(x, kernel, (strides[1], strides[2]), padding)


def _separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    strides: Sequence[int],
    padding: str,
    data_format: str,
    dilations: Sequence[int] | None,
) -> Tensor:
    y = _depthwise_conv2d(x, depthwise, strides, padding, data_format, dilations)
    return _convolution(y, pointwise, 1, "VALID", data_format, 1)


_tf_gelu = tf.nn.gelu


def _gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """The exact GELU's gradient is Φ(x) + x·φ(x); LiteRT has no erf, but Φ(x) = gelu(x) / x."""
    if approximate:
        return _tf_gelu(x, approximate=True)

    def gelu(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y = _tf_gelu(x)

        def gradient(dy: Tensor) -> Tensor:
            # Near 0 the quotient is 0/0; the tangent of Φ is exact to float32 there.
            small = tf.abs(x) < 1e-3
            density = tf.exp(-0.5 * tf.square(x)) / math.sqrt(2 * math.pi)
            near_zero = 0.5 + x / math.sqrt(2 * math.pi)
            cumulative = tf.where(small, near_zero, y / tf.where(small, tf.ones_like(x), x))
            return dy * (cumulative + x * density)

        return y, gradient

    found: Tensor = tf.custom_gradient(gelu)(x)
    return found
