"""Pooling and resizing of PyTorch, over one or two axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedgrass.authoring.torch.convolutions import as_given, as_images, two
from fedgrass.authoring.torch.reductions import reduced
from fedgrass.authoring.torch.registry import OPERATORS, Context, Sizes, operator, require
from fedgrass.authoring.torch.shapes import along
from fedgrass.authoring.torch.values import Value
from fedgrass.authoring.windows import pad

Tensor: TypeAlias = tf.Tensor
Matrix = NDArray[np.float32]

_LOWEST = -3.0e38


def _pool_geometry(
    x: Tensor, spatial: int, size: Sizes, stride: Sizes | None, padding: Sizes, ceil: bool
) -> tuple[list[int], list[int], list[list[int]]]:
    sizes = two(size, spatial, missing=1)
    # PyTorch's default: windows side by side.
    strides = two(stride, spatial, missing=1) if stride not in (None, []) else list(sizes)
    befores = two(padding, spatial, missing=0)
    pads = []
    for length, one, step, before in zip(x.shape[1:3], sizes, strides, befores, strict=True):
        span = length + 2 * before - one
        count = (-(-span // step) if ceil else span // step) + 1
        if ceil and (count - 1) * step >= length + before:  # a window may not begin beyond the image
            count -= 1
        pads.append([before, max((count - 1) * step + one - length - before, 0)])
    return sizes, strides, pads


@operator("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(
    context: Context, x: Value, size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil: bool
) -> Value:
    spatial = 1 if not isinstance(size, int) and len(size) == 1 else 2
    return _max_pooled(x, spatial, size, stride, padding, dilation, ceil)


@operator("max_pool2d_with_indices", "max_pool1d_with_indices")
def _max_pool_with_indices(context: Context, x: Value, *arguments: Any) -> list[Value]:
    return [_max_pool(context, x, *arguments)]


def _max_pooled(
    x: Value, spatial: int, size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil: bool
) -> Value:
    image, single = as_images(x, spatial)
    require(set(two(dilation, spatial, missing=1)) == {1}, "max pooling with dilation", "use dilation=1")
    sizes, strides, pads = _pool_geometry(image, spatial, size, stride, padding, ceil)
    # Padded with the lowest float: the padding must never be the largest of a window.
    image = pad(image, [[0, 0], *pads, [0, 0]], _LOWEST)
    return as_given(tf.nn.max_pool2d(image, sizes, strides, "VALID"), spatial, single)


@operator("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(
    context: Context,
    x: Value,
    size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil: bool,
    outside_counts: bool,
    divisor: int | None = None,
) -> Value:
    spatial = 1 if not isinstance(size, int) and len(size) == 1 else 2
    image, single = as_images(x, spatial)
    sizes, strides, pads = _pool_geometry(image, spatial, size, stride, padding, ceil)
    y = tf.nn.avg_pool2d(pad(image, [[0, 0], *pads, [0, 0]]), sizes, strides, "VALID")
    befores = two(padding, spatial, missing=0)
    counts = [
        _counted(length, one, step, before, before if outside_counts else 0, int(out))
        for length, one, step, before, out in zip(image.shape[1:3], sizes, strides, befores, y.shape[1:3], strict=True)
    ]
    # TensorFlow has divided by the window; PyTorch divides by what counts of it.
    shares = math.prod(sizes) / np.outer(*counts) if divisor is None else np.full([1, 1], math.prod(sizes) / divisor)
    if not np.all(shares == 1.0):
        y = y * shares[None, :, :, None].astype(np.float32)
    return as_given(y, spatial, single)


def _counted(length: int, size: int, stride: int, before: int, counted: int, windows: int) -> Matrix:
    """How many places of each window are divided by: those of the image, and of its padding if that counts."""
    first = np.arange(windows) * stride - before
    last = np.minimum(first + size, length + counted)
    return last - np.maximum(first, -counted)


@operator("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(context: Context, x: Value, sizes: Sizes) -> Value:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    axes = list(range(x.rank - len(sizes), x.rank))
    # Global pooling, which nearly every classifier has: a mean instead of a matrix.
    if all(size == 1 for size in sizes):
        return reduced(x, axes, True, tf.reduce_mean)
    for axis, size in zip(axes, sizes, strict=True):
        if size is not None and size != x.shape[axis]:
            x = along(x, axis, _shares(x.shape[axis], size))
    return x


@operator("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(context: Context, x: Value, sizes: Sizes) -> list[Value]:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    lengths = x.shape[x.rank - len(sizes) :]
    if all(size == 1 for size in sizes):
        return [reduced(x, list(range(x.rank - len(sizes), x.rank)), True, tf.reduce_max)]
    # Windows of unlike sizes have no pooling operator.
    require(
        all(length % size == 0 for length, size in zip(lengths, sizes, strict=True)),
        f"adaptive max pooling of {list(lengths)} to {sizes}",
        "give sizes that divide the input's",
    )
    steps = [length // size for length, size in zip(lengths, sizes, strict=True)]
    return [_max_pooled(x, len(sizes), steps, steps, 0, 1, False)]


def _shares(length: int, size: int) -> Matrix:
    matrix = np.zeros([size, length], np.float32)
    for i in range(size):
        # PyTorch's windows: from floor(i·n/m) up to ceil((i + 1)·n/m), so neighbours may overlap.
        first, last = i * length // size, -(-(i + 1) * length // size)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix


def _resized(x: Value, sizes: Sequence[int], matrix: Callable[..., Matrix], scales: Sequence[float | None]) -> Value:
    axes = range(x.rank - len(sizes), x.rank)
    if len(sizes) == 2:
        x = Value(x.laid([0, 2, 3, 1]), [0, 2, 3, 1])
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        if size != x.shape[axis]:
            x = along(x, axis, matrix(x.shape[axis], size, scale))
    return x


def _interpolation(matrix: Callable[..., Matrix], spatial: int, *, aligns: bool) -> Callable[..., Value]:
    def apply(context: Context, x: Value, sizes: Sequence[int] | None, *options: Any) -> Value:
        align = bool(options[0]) if aligns else False
        given = options[1:] if aligns else options
        factors = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
        # With a factor given, PyTorch maps places by it and not by the ratio of sizes.
        known = bool(factors) and None not in factors
        scales: list[float | None] = [*factors] if known else [None] * spatial
        lengths = x.shape[x.rank - spatial :]
        if sizes is None:
            sizes = [math.floor(length * scale) for length, scale in zip(lengths, factors, strict=True)]
        return _resized(x, sizes, lambda n, m, s: matrix(n, m, s, align), scales)

    return apply


def _nearest(length: int, size: int, scale: float | None, _: bool) -> Matrix:
    ratio = 1.0 / scale if scale else length / size
    places = np.minimum(np.floor(np.arange(size) * ratio).astype(int), length - 1)
    found: Matrix = np.eye(length, dtype=np.float32)[places]
    return found


def _nearest_exact(length: int, size: int, scale: float | None, _: bool) -> Matrix:
    ratio = 1.0 / scale if scale else length / size
    places = np.minimum(np.floor((np.arange(size) + 0.5) * ratio).astype(int), length - 1)
    found: Matrix = np.eye(length, dtype=np.float32)[places]
    return found


def _sources(length: int, size: int, scale: float | None, align: bool) -> Matrix:
    if align:
        return np.arange(size) * ((length - 1) / (size - 1) if size > 1 else 0.0)
    return (np.arange(size) + 0.5) * (1.0 / scale if scale else length / size) - 0.5


def _linear(length: int, size: int, scale: float | None, align: bool) -> Matrix:
    # Places before the first pixel take its value.
    source = np.maximum(_sources(length, size, scale, align), 0.0)
    low = np.minimum(source.astype(int), length - 1)
    high, part = np.minimum(low + 1, length - 1), source - low
    matrix = np.zeros([size, length], np.float32)
    np.add.at(matrix, (np.arange(size), low), 1.0 - part)
    np.add.at(matrix, (np.arange(size), high), part)
    return matrix


def _cubic(length: int, size: int, scale: float | None, align: bool) -> Matrix:
    source = _sources(length, size, scale, align)
    # −0.75: PyTorch's coefficient of the cubic convolution (Keys 1981 has −0.5).
    base, a = np.floor(source).astype(int), -0.75
    matrix = np.zeros([size, length], np.float32)
    for offset in range(-1, 3):
        d = np.abs(source - base - offset)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(size), np.clip(base + offset, 0, length - 1)), np.where(d <= 1, near, far))
    return matrix


for _rank in (1, 2):
    OPERATORS[f"upsample_nearest{_rank}d"] = _interpolation(_nearest, _rank, aligns=False)
    OPERATORS[f"_upsample_nearest_exact{_rank}d"] = _interpolation(_nearest_exact, _rank, aligns=False)
OPERATORS["upsample_linear1d"] = _interpolation(_linear, 1, aligns=True)
OPERATORS["upsample_bilinear2d"] = _interpolation(_linear, 2, aligns=True)
OPERATORS["upsample_bicubic2d"] = _interpolation(_cubic, 2, aligns=True)


@operator("pixel_shuffle")
def _pixel_shuffle(context: Context, x: Value, factor: int) -> Value:
    batch, channels, height, width = x.shape
    filters = channels // factor**2
    image = tf.reshape(x.laid([0, 2, 3, 1]), [batch * height, width, filters, factor, factor])
    moved = tf.transpose(image, [0, 3, 1, 4, 2])  # rows of the block before the columns of the image
    return Value(tf.reshape(moved, [batch, height * factor, width * factor, filters]), [0, 2, 3, 1])


@operator("pixel_unshuffle")
def _pixel_unshuffle(context: Context, x: Value, factor: int) -> Value:
    batch, channels, height, width = x.shape
    down, across = height // factor, width // factor
    image = tf.reshape(x.laid([0, 2, 3, 1]), [batch * down, factor, across, factor, channels])
    moved = tf.transpose(image, [0, 2, 4, 1, 3])
    return Value(tf.reshape(moved, [batch, down, across, channels * factor**2]), [0, 2, 3, 1])


@operator("channel_shuffle")
def _channel_shuffle(context: Context, x: Value, groups: int) -> Value:
    batch, channels, height, width = x.shape
    image = tf.reshape(x.laid([0, 2, 3, 1]), [batch * height * width, groups, channels // groups])
    return Value(tf.reshape(tf.transpose(image, [0, 2, 1]), [batch, height, width, channels]), [0, 2, 3, 1])
