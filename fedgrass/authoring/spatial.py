"""Dilated, grouped and transposed convolutions, resizing and affine transforms, in operators that train on a device.

What is made here consists of slices, pads, concatenations and matrix products: their gradients are known, and XNNPACK runs
them with weights that change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.windows import Pair, Windows, concat, output_and_padding, pad

Tensor: TypeAlias = tf.Tensor
Convolve = Callable[..., Tensor]


def dilated_depthwise_convolution(x: Tensor, kernel: Tensor, dilations: Pair, padding: str) -> Tensor:
    """Convolve each channel of x [B, H, W, C] with its own taps of a kernel [kh, kw, C, M], at stride 1.

    Parameters
    ----------
    x
        [B, H, W, C].
    kernel
        [kh, kw, C, M].
    dilations
        Of rows and columns.
    padding
        SAME or VALID.
    """
    taps = _dilated_taps(x, kernel.shape[:2], dilations, padding)
    rows = tf.reshape(kernel, [-1, *kernel.shape[2:]])
    y = sum(tf.expand_dims(tap, 4) * rows[i] for i, tap in enumerate(taps))
    return tf.reshape(y, [*taps[0].shape[:3], kernel.shape[2] * kernel.shape[3]])


def _dilated_taps(x: Tensor, kernel: Sequence[int], dilations: Pair, padding: str) -> list[Tensor]:
    pads, counts = [[0, 0]], []
    for size, taps, dilation in zip(x.shape[1:3], kernel, dilations, strict=True):
        reach = (taps - 1) * dilation
        before = reach // 2 if padding == "SAME" else 0
        pads.append([before, reach - before if padding == "SAME" else 0])
        counts.append(size if padding == "SAME" else size - reach)
    x = pad(x, [*pads, [0, 0]])
    down, across = counts
    starts = [(a * dilations[0], b * dilations[1]) for a in range(kernel[0]) for b in range(kernel[1])]
    return [x[:, top : top + down, left : left + across] for top, left in starts]


def grouped_convolution(x: Tensor, kernel: Tensor, convolve: Convolve) -> Tensor:
    """Convolve each group of x's channels with its own filters: as many groups as a kernel's depth fits into them.

    Parameters
    ----------
    x
        [B, …, C].
    kernel
        […, C / groups, N].
    convolve
        Convolves one group with its filters.
    """
    depth = kernel.shape[-2]
    groups = x.shape[-1] // depth
    filters = kernel.shape[-1] // groups
    parts = [
        convolve(x[..., g * depth : (g + 1) * depth], kernel[..., g * filters : (g + 1) * filters])
        for g in range(groups)
    ]
    return concat(parts, x.shape.rank - 1)


def transposed_convolution(
    x: Tensor, kernel: Tensor, output: Sequence[int], strides: Pair, padding: str, convolve: Convolve
) -> Tensor:
    """Convolve x [B, H, W, C] with zeros between its places: the adjoint of a strided convolution.

    Parameters
    ----------
    kernel
        [kh, kw, N, C].
    output
        Rows and columns of the result.
    convolve
        Convolves with a kernel, VALID at stride 1.
    """
    sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[1:3], strides, strict=True)]
    # Zeros between the places, by the windows' adjoint.
    up = x if strides == (1, 1) else Windows([x.shape[0], *sizes, x.shape[3]], (1, 1), strides, "VALID").scatter([x])
    pads, kept = [[0, 0]], [slice(None)]
    for size, wanted, taps, stride in zip(sizes, output, kernel.shape[:2], strides, strict=True):
        _, before = output_and_padding(wanted, taps, stride, padding)
        # Negative: TensorFlow cuts there instead of padding.
        left = taps - 1 - before
        right = wanted + taps - 1 - left - size
        kept.append(slice(max(-left, 0), size - max(-right, 0)))
        pads.append([max(left, 0), max(right, 0)])
    up = pad(up[tuple(kept)], [*pads, [0, 0]])
    return convolve(up, tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2]))


def resize(resized: Convolve, x: Tensor, size: Sequence[int], **how: bool | str) -> Tensor:
    """Resize images [B, H, W, C] by two matrix products, whose weights ``resized`` (``tf.image.resize``) gives.

    Parameters
    ----------
    resized
        ``tf.image.resize`` itself, which is asked for the weights.
    x
        [B, H, W, C].
    size
        Height and width of the result.
    **how
        Method and antialiasing, as ``tf.image.resize`` takes them.
    """
    down, across = (int(value) for value in size)
    batch, height, width, channels = x.shape
    x = tf.cast(x, tf.float32)
    if down != height:
        x = tf.matmul(_weights(resized, height, down, how), tf.reshape(x, [batch, height, width * channels]))
    x = tf.reshape(x, [batch * down, width, channels])
    if across != width:
        x = tf.matmul(_weights(resized, width, across, how), x)
    return tf.reshape(x, [batch, down, across, channels])


def _weights(resized: Convolve, size: int, wanted: int, how: dict[str, bool | str]) -> Tensor:
    """[1, wanted, size]: what an image whose rows are those of the identity becomes."""
    # Computed now and put in as constants: a resize is linear, and its matrix never changes.
    with tf.init_scope():
        rows = resized(tf.reshape(tf.eye(size), [1, size, size, 1]), [wanted, size], **how)
        weights = np.asarray(rows).reshape(1, wanted, size)
    return tf.constant(weights)


def affine_transform(
    images: Tensor,
    transform: Tensor,
    interpolation: str = "bilinear",
    fill_mode: str = "constant",
    fill_value: float = 0,
    data_format: str | None = None,
) -> Tensor:
    """Move the pixels of images [B, H, W, C] (or [H, W, C]) by projective transforms [B, 8]; Keras' meaning of each.

    Parameters
    ----------
    images
        [B, H, W, C] or [H, W, C].
    transform
        Eight numbers for each image, as Keras has them.
    interpolation
        nearest or bilinear.
    fill_mode
        What lies outside.
    fill_value
        Value outside, for ``constant``.
    data_format
        channels_last; anything else is refused.
    """
    if fill_mode not in ("constant", "nearest", "reflect") or data_format == "channels_first":
        raise UnsupportedModelError(
            "the model", f"an image transform with fill_mode={fill_mode!r} or channels first", 'use fill_mode="reflect"'
        )
    if images.shape.rank == 3:
        moved = affine_transform(images[None], transform[None], interpolation, fill_mode, fill_value)
        return tf.squeeze(moved, [0])
    batch, height, width, channels = images.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x, y = (tf.constant(grid.reshape(1, -1), tf.float32) for grid in (columns, rows))
    a = [tf.reshape(value, [batch, 1]) for value in tf.unstack(tf.cast(transform, tf.float32), num=8, axis=1)]
    below = a[6] * x + a[7] * y + 1.0
    across, down = (a[0] * x + a[1] * y + a[2]) / below, (a[3] * x + a[4] * y + a[5]) / below
    # Places are folded back into the image before they are rounded.
    if fill_mode != "constant":
        across, down = _inside(across, width, fill_mode), _inside(down, height, fill_mode)
    flat = tf.reshape(tf.cast(images, tf.float32), [batch * height * width, channels])
    first = tf.constant(np.arange(batch).reshape(-1, 1) * height * width, tf.int32)

    def read(row: Tensor, column: Tensor) -> Tensor:
        # GATHER must stay inside; whether it was outside is told by comparing afterwards.
        in_row, in_column = tf.clip_by_value(row, 0.0, height - 1.0), tf.clip_by_value(column, 0.0, width - 1.0)
        place = first + tf.cast(in_row, tf.int32) * width + tf.cast(in_column, tf.int32)
        found = tf.reshape(tf.gather(flat, tf.reshape(place, [-1])), [batch, -1, channels])
        if fill_mode != "constant":
            return found
        known = tf.cast(tf.logical_and(tf.equal(row, in_row), tf.equal(column, in_column)), tf.float32)[..., None]
        return found * known + fill_value * (1.0 - known)

    if interpolation == "nearest":
        # Half up, as Keras' transform rounds.
        moved = read(tf.floor(down + 0.5), tf.floor(across + 0.5))
    else:
        top, left = tf.floor(down), tf.floor(across)
        low, right = (down - top)[..., None], (across - left)[..., None]
        upper = read(top, left) * (1.0 - right) + read(top, left + 1.0) * right
        lower = read(top + 1.0, left) * (1.0 - right) + read(top + 1.0, left + 1.0) * right
        moved = upper * (1.0 - low) + lower * low
    return tf.reshape(moved, images.shape)


def _inside(place: Tensor, size: int, fill_mode: str) -> Tensor:
    if fill_mode == "reflect":
        period = 2.0 * size
        turned = place + 0.5 - period * tf.floor((place + 0.5) / period)
        # Half-pixel reflection: the edge pixel is repeated, as in SciPy's "reflect".
        place = tf.minimum(turned, period - turned) - 0.5
    return tf.clip_by_value(place, 0.0, size - 1.0)
