"""Normalizations with gradients of their own.

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
        # In two steps: XNNPACK adds row by row, and each addition to a large sum rounds.
        summed = tf.reduce_sum(x, axis=-2)
        return tf.reduce_sum(tf.reshape(summed, [-1, channels]), axis=0)

    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[_Result, Callable[..., tuple[Tensor, ...]]]:
        image = shaped(x)
        about = total(image) / rows
        # Two passes, not E[x²] − E[x]²: that loses digits where the mean is large.
        centred = image - repeated(about)
        # What rounding left of the mean: the gradient of the scale would be wrong by it, times the sum of dy.
        rest = total(centred) / rows
        variance = total(tf.square(centred)) / rows - tf.square(rest)
        inverse = tf.math.rsqrt(variance + epsilon)
        y = centred * repeated(inverse * scale) + repeated(offset - rest * inverse * scale)

        # The closed form of Ioffe and Szegedy (https://arxiv.org/abs/1502.03167).
        def gradient(dy: Tensor, _mean: Tensor, _variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            dy = shaped(dy)
            by_offset = total(dy)
            by_scale = (total(dy * centred) - rest * by_offset) * inverse
            slope = -inverse * inverse * scale * by_scale / rows
            level = rest * slope + inverse * scale * by_offset / rows
            dx = dy * repeated(inverse * scale) + centred * repeated(slope) - repeated(level)
            return tf.reshape(dx, x.shape), by_scale, by_offset

        return (tf.reshape(y, x.shape), about + rest, variance), gradient

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
    y, mean, variance = normalized(inputs, *_affine(layer, inputs.shape[-1]), layer.epsilon)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return y


def normalized_rows(x: Tensor, scale: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """Normalize x [B, …, C] over its last axis.

    Parameters
    ----------
    x
        [B, …, C].
    scale, offset
        [C].
    epsilon
        Added to the variance.
    """

    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        rows = in_parts(x)
        centred = rows - _row_mean(rows)
        inverse = tf.math.rsqrt(_row_mean(tf.square(centred)) + epsilon)
        normal = centred * inverse

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            dy = in_parts(dy)
            by_normal = dy * scale
            dx = (by_normal - _row_mean(by_normal) - normal * _row_mean(by_normal * normal)) * inverse
            return tf.reshape(dx, x.shape), _sum_of_rows(dy * normal), _sum_of_rows(dy)

        return tf.reshape(normal * scale + offset, x.shape), gradient

    found: Tensor = tf.custom_gradient(normalize)(x, scale, offset)
    return found


def _sum_of_rows(parts: Tensor) -> Tensor:
    """Sum [parts, rows, C] to [C], the rows of each part first, as `normalized` does."""
    return tf.reduce_sum(tf.reduce_sum(parts, 1), 0)


def _row_mean(rows: Tensor) -> Tensor:
    return tf.reduce_mean(rows, -1, keepdims=True)


def normalized_groups(x: Tensor, scale: Tensor, offset: Tensor, groups: int, epsilon: float) -> Tensor:
    """Normalize each example of x [B, …, C] over its positions and over groups of neighbouring channels.

    Parameters
    ----------
    x
        [B, …, C].
    scale, offset
        [C].
    groups
        Their number, of which C is a multiple.
    epsilon
        Added to the variance.
    """
    batch, channels = x.shape[0], x.shape[-1]
    positions = x.shape.num_elements() // (batch * channels)
    width = x.shape[-2] if x.shape.rank > 2 and channels < LANES else 1

    def total(image: Tensor) -> Tensor:
        summed = tf.reduce_sum(image, axis=1)
        return tf.reduce_sum(tf.reshape(summed, [batch, width, channels]), axis=1)

    def mean(totals: Tensor) -> Tensor:
        """From sums of channels [B, C] to their groups' means, [B, C] too."""
        apart = tf.reduce_sum(tf.reshape(totals, [batch, groups, channels // groups]), axis=2, keepdims=True)
        spread = apart * tf.ones([1, 1, channels // groups]) / (positions * (channels // groups))
        return tf.reshape(spread, [batch, channels])

    def row(values: Tensor) -> Tensor:
        """From [B, C] to what multiplies or is added to an image."""
        values = tf.reshape(values, [batch, 1, channels])
        return tf.reshape(values * tf.ones([1, width, 1]), [batch, 1, width * channels]) if width > 1 else values

    def normalize(x: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        image = tf.reshape(x, [batch, -1, width * channels])
        centred = image - row(mean(total(image)))
        inverse = tf.math.rsqrt(mean(total(tf.square(centred))) + epsilon)
        y = centred * row(inverse * scale) + row(offset * tf.ones([batch, 1]))

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            dy = tf.reshape(dy, [batch, -1, width * channels])
            by_offset, by_normal = total(dy), total(dy * centred) * inverse
            slope = tf.square(inverse) * mean(by_normal * scale)
            dx = dy * row(inverse * scale) - centred * row(slope) - row(inverse * mean(by_offset * scale))
            return tf.reshape(dx, x.shape), tf.reduce_sum(by_normal, 0), tf.reduce_sum(by_offset, 0)

        return tf.reshape(y, x.shape), gradient

    found: Tensor = tf.custom_gradient(normalize)(x, scale, offset)
    return found


def layer_normalization(layer: keras.Layer, inputs: Tensor) -> Tensor:
    """Stand for ``keras.layers.LayerNormalization.call``; over other axes than the last, Keras' own is called."""
    last = layer.axis in (-1, [-1], inputs.shape.rank - 1, [inputs.shape.rank - 1])
    if not last or layer.rms_scaling or inputs.dtype != tf.float32 or None in inputs.shape:
        return _layer_normalization(layer, inputs)
    return normalized_rows(inputs, *_affine(layer, inputs.shape[-1]), layer.epsilon)


def group_normalization(layer: keras.Layer, inputs: Tensor) -> Tensor:
    """Stand for ``keras.layers.GroupNormalization.call``; with channels elsewhere than last, Keras' own is called."""
    if layer.axis not in (-1, inputs.shape.rank - 1) or inputs.dtype != tf.float32 or None in inputs.shape:
        return _group_normalization(layer, inputs)
    return normalized_groups(inputs, *_affine(layer, inputs.shape[-1]), layer.groups, layer.epsilon)


def _affine(layer: keras.Layer, channels: int) -> tuple[Tensor, Tensor]:
    """Return a layer's scale and offset [C], where it has them."""
    scale = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones([channels])
    return scale, tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros([channels])


_batch_normalization = keras.layers.BatchNormalization.call
_layer_normalization = keras.layers.LayerNormalization.call
_group_normalization = keras.layers.GroupNormalization.call
