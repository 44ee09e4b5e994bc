"""Batch normalization with a gradient of its own.

What TensorFlow derives from the formula passes over the images some twenty times; the known closed form takes half of
that, in the shape that the products around it use. Sums are over long rows, since XNNPACK goes row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import keras
import tensorflow as tf

from fedgrass.authoring.convolution import LANES, in_parts

Tensor: TypeAlias = tf.Tensor
_Result = tuple[Tensor, Tensor, Tensor]


def normalized(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> _Result:
    """Normalize x [B, …, C] over all axes but the last; return it with its mean [C] and variance [C], as batches are.

    Parameters
    ----------
    x
        [B, …, C].
    scale
        [C].
    offset
        [C].
    epsilon
        Added to the variance.
    """
    channels = x.shape[-1]
    rows = x.shape.num_elements() // channels
    # Few channels make short rows: a row of pixels is joined then.
    width = x.shape[-2] if x.shape.rank > 2 and channels < LANES else 1

    def shaped(x: Tensor) -> Tensor:
        return tf.reshape(x, [-1, width * channels]) if width > 1 else in_parts(x)

    def repeated(values: Tensor) -> Tensor:
        return tf.reshape(values * tf.ones([width, 1]), [width * channels]) if width > 1 else values

    def total(x: Tensor) -> Tensor:
        summed = tf.reduce_sum(x, axis=list(range(x.shape.rank - 1)))
        return tf.reduce_sum(tf.reshape(summed, [width, channels]), axis=0) if width > 1 else summed

    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[_Result, Callable[..., tuple[Tensor, ...]]]:
        image = shaped(x)
        mean = total(image) / rows
        # Two passes, not E[x²] − E[x]²: that loses digits where the mean is large.
        centred = image - repeated(mean)
        variance = total(tf.square(centred)) / rows
        inverse = tf.math.rsqrt(variance + epsilon)
        y = centred * repeated(inverse * scale) + repeated(offset)

        # The closed form of Ioffe and Szegedy (https://arxiv.org/abs/1502.03167).
        def gradient(dy: Tensor, _mean: Tensor, _variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            dy = shaped(dy)
            by_offset = total(dy)
            by_scale = total(dy * centred) * inverse
            slope = repeated(-inverse * inverse * scale * by_scale / rows)
            dx = dy * repeated(inverse * scale) + centred * slope - repeated(inverse * scale * by_offset / rows)
            return tf.reshape(dx, x.shape), by_scale, by_offset

        return (tf.reshape(y, x.shape), mean, variance), gradient

    found: _Result = tf.custom_gradient(normalize)(x, scale, offset)
    return found


def batch_normalization(
    layer: keras.Layer, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    """Stand for ``keras.layers.BatchNormalization.call``.

    Parameters
    ----------
    layer
        The layer.
    inputs
        [B, …, C].
    training
        Whether the batch's own statistics are taken.
    mask
        [B, …] of what counts; with one, Keras' own layer is called.
    """
    last = layer.axis in (-1, inputs.shape.rank - 1)
    # Masks, other axes and inference are rare in training: Keras' own layer does them.
    plain = training and layer.trainable and mask is None and not layer.renorm and last and inputs.shape.rank >= 2
    if not plain or inputs.dtype != tf.float32:
        return _batch_normalization(layer, inputs, training=training, mask=mask)
    channels = [inputs.shape[-1]]
    scale = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(channels)
    offset = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros(channels)
    y, mean, variance = normalized(inputs, scale, offset, layer.epsilon)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return y


_batch_normalization = keras.layers.BatchNormalization.call
