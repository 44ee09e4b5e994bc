"""Convolutions of PyTorch, and their adjoints, over one or two axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.convolution import convolution, product, spread, transposed_product
from fedgrass.authoring.torch.registry import Context, Operand, Sizes, operator, require
from fedgrass.authoring.torch.values import Value, reshape
from fedgrass.authoring.windows import Windows, concat, crop, pad

Tensor: TypeAlias = tf.Tensor
ALL = slice(None)

_LOWEST = -3.0e38


def as_images(x: Value, spatial: int) -> tuple[Tensor, bool]:
    """Return [N, H, W, C] of [N, C, W] or [N, C, H, W]; and whether the batch axis was missing."""
    require(spatial in (1, 2), f"{spatial} spatial axes", "use one or two")
    single = x.rank == spatial + 1
    if single:
        x = reshape(x, [1, *x.shape])
    # One-dimensional convolutions are two-dimensional ones of a single row: one path to keep right.
    if spatial == 1:
        x = reshape(x, [*x.shape[:2], 1, x.shape[2]])
    return x.laid([0, 2, 3, 1]), single


def as_given(y: Tensor, spatial: int, single: bool) -> Value:
    """Undo `as_images`.

    Parameters
    ----------
    y
        [N, H, W, C].
    spatial
        1 or 2 axes of an image.
    single
        Whether the batch axis was missing.
    """
    found = Value(y, [0, 2, 3, 1])
    shape = found.shape
    if spatial == 1:
        found = reshape(found, [shape[0], shape[1], shape[3]])
    return reshape(found, found.shape[1:]) if single else found


def two(sizes: Sizes, spatial: int, *, missing: int) -> list[int]:
    """Return one size for both axes, for each axis, or for the only one.

    Parameters
    ----------
    sizes
        One size, or one for each axis.
    spatial
        1 or 2.
    missing
        Size along the axis that a single one lacks.
    """
    found = [sizes] if isinstance(sizes, int) else list(sizes)
    # PyTorch takes a list of one size for all axes, too.
    found = found * spatial if len(found) == 1 else found
    return [missing] * (2 - len(found)) + [int(size) for size in found]


@operator("conv1d", "conv2d", "conv3d")
def _conv(
    context: Context,
    x: Value,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Value:
    weight = context.value(weight)
    spatial = weight.rank - 2
    image, single = as_images(x, spatial)
    strides, dilations = two(stride, spatial, missing=1), two(dilation, spatial, missing=1)
    kernel = _kernel(weight)
    pads = _padding(padding, kernel.shape[:2], dilations, spatial)
    y = _convolved(context, image, kernel, strides, pads, dilations, groups)
    if bias is not None:
        y = tf.nn.bias_add(y, context.value(bias).tensor)
    return as_given(y, spatial, single)


@operator("convolution", "_convolution")
def _any_convolution(
    context: Context,
    x: Value,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    *_: object,
) -> Value:
    if transposed:
        return _conv_transpose(context, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(context, x, weight, bias, stride, padding, dilation, groups)


def _kernel(weight: Value) -> Tensor:
    """[kh, kw, in, out] of PyTorch's [out, in, kw] or [out, in, kh, kw]."""
    if weight.rank == 3:
        return tf.expand_dims(weight.laid([2, 1, 0]), 0)
    return weight.laid([2, 3, 1, 0])


def _padding(padding: Sizes | str, kernel: Sequence[int], dilations: Sequence[int], spatial: int) -> list[list[int]]:
    if isinstance(padding, str):
        # "same", with the odd zero behind, as PyTorch has it.
        if padding == "valid":
            return [[0, 0], [0, 0]]
        totals = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
        return [[total // 2, total - total // 2] for total in totals]
    return [[size, size] for size in two(padding, spatial, missing=0)]


def _convolved(
    context: Context,
    image: Tensor,
    kernel: Tensor,
    strides: Sequence[int],
    pads: list[list[int]],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    channels = image.shape[3]
    # A kernel of one tap has no gaps, whatever its dilation.
    dilations = [1 if size == 1 else dilation for size, dilation in zip(kernel.shape, dilations, strict=False)]
    same = [[(size - 1) // 2, size // 2] for size in kernel.shape[:2]]
    # Where PyTorch's padding is TensorFlow's SAME, the operator pads by itself: one copy of the image less.
    if list(strides) == [1, 1] and dilations == [1, 1] and pads == same and kernel.shape[:2] != [1, 1]:
        padding = "SAME"
    else:
        padding, image = "VALID", pad(image, [[0, 0], *pads, [0, 0]])
    if groups == channels and groups > 1:
        return _depthwise(context, image, kernel, strides, padding, dilations)
    if groups > 1:
        return _grouped(context, image, kernel, strides, padding, dilations, groups)
    # LiteRT's dilated convolution has no gradient here, and none takes strides and dilation together.
    if dilations != [1, 1] and (context.trains or set(strides) != {1}):
        pairs = (strides[0], strides[1]), padding, (dilations[0], dilations[1])
        return convolution(image, kernel, *pairs, bounded=False)
    return tf.nn.convolution(
        image, kernel, strides=list(strides), padding=padding, data_format="NHWC", dilations=dilations
    )


def _depthwise(
    context: Context,
    image: Tensor,
    kernel: Tensor,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
) -> Tensor:
    """PyTorch's kernel [kh, kw, 1, C · m] has the outputs of a channel side by side, as TensorFlow's [kh, kw, C, m]."""
    channels = image.shape[3]
    filters = tf.reshape(kernel, [*kernel.shape[:2], channels, -1])
    # TensorFlow's depthwise operator wants one stride for both axes.
    if strides[0] != strides[1] and not context.trains:
        return _grouped(context, image, kernel, strides, padding, dilations, channels)
    if list(dilations) != [1, 1] and context.trains:
        filters, dilations = _spread(filters, dilations), [1, 1]
    return tf.nn.depthwise_conv2d(
        image, filters, [1, *strides, 1], padding, data_format="NHWC", dilations=list(dilations)
    )


def _spread(kernel: Tensor, dilations: Sequence[int]) -> Tensor:
    """The kernel with zeros between its taps."""
    return spread(spread(kernel, 0, dilations[0]), 1, dilations[1])


def _grouped(
    context: Context,
    image: Tensor,
    kernel: Tensor,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    if padding == "SAME":
        image = pad(image, [[0, 0], *([(size - 1) // 2, size // 2] for size in kernel.shape[:2]), [0, 0]])
    return _by_taps(image, kernel, strides, dilations, groups)


def _by_taps(image: Tensor, kernel: Tensor, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Tensor:
    """Bring the pixels under each tap of the kernel side by side, and multiply by it; ``image`` is padded already."""
    rows, columns = (int(size) for size in kernel.shape[:2])
    batch, height, width, channels = (int(size) for size in image.shape)
    down = (height - (rows - 1) * dilations[0] - 1) // strides[0] + 1
    across = (width - (columns - 1) * dilations[1] - 1) // strides[1] + 1
    taps = []
    for a in range(rows):
        for b in range(columns):
            tap = _every(image, 1, a * dilations[0], down, strides[0])
            taps.append(_every(tap, 2, b * dilations[1], across, strides[1]))
    count, filters = rows * columns, int(kernel.shape[3])
    patches = tf.reshape(concat(taps, 3), [batch * down * across, count * channels])
    inside = channels // groups
    apart = tf.reshape(patches, [-1, count, groups, inside])
    # One product for each group, in one batched operator.
    patches = tf.reshape(tf.transpose(apart, [2, 0, 1, 3]), [groups, -1, count * inside])
    matrices = tf.reshape(kernel, [count * inside, groups, filters // groups])
    y = tf.matmul(patches, tf.transpose(matrices, [1, 0, 2]))
    return tf.reshape(tf.transpose(y, [1, 0, 2]), [batch, down, across, filters])


def product_of(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices whose gradients are products too."""

    def multiply(a: Tensor, b: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        return product(a, b), lambda dy: (product(dy, b, transpose_b=True), transposed_product(a, dy))

    found: Tensor = tf.custom_gradient(multiply)(a, b)
    return found


def _every(x: Tensor, axis: int, first: int, count: int, stride: int) -> Tensor:
    """``count`` places of an axis, ``stride`` apart."""
    if stride == 1:
        return crop(x, *[ALL] * axis, slice(first, first + count))
    size = int(x.shape[axis])
    missing = first + count * stride - size
    if missing > 0:
        x = pad(x, [[0, missing] if a == axis else [0, 0] for a in range(x.shape.rank)])
    x = crop(x, *[ALL] * axis, slice(first, first + count * stride))
    shape = [int(s) for s in x.shape]
    # A stride by a reshape and a plain slice, as in `fedgrass.authoring.windows`.
    x = tf.reshape(x, [*shape[:axis], count, stride, *shape[axis + 1 :]])
    x = crop(x, *[ALL] * (axis + 1), slice(0, 1))
    shape[axis] = count
    return tf.reshape(x, shape)


@operator("conv_transpose1d", "conv_transpose2d")
def _conv_transpose(
    context: Context,
    x: Value,
    weight: Operand,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Value:
    """The adjoint of a convolution: each pixel times the kernel, added up where it falls."""
    weight = context.value(weight)
    spatial = weight.rank - 2
    image, single = as_images(x, spatial)
    strides, dilations = two(stride, spatial, missing=1), two(dilation, spatial, missing=1)
    pads, more = two(padding, spatial, missing=0), two(output_padding, spatial, missing=0)
    # PyTorch's [in, out / groups, kh, kw] as [kh, kw, in, out / groups].
    kernel = tf.expand_dims(weight.laid([2, 0, 1]), 0) if spatial == 1 else weight.laid([2, 3, 0, 1])
    kernel = _spread(kernel, dilations)
    parts, size = [], int(image.shape[3]) // groups
    for group in range(groups):
        places = slice(group * size, (group + 1) * size)
        part, filters = (image, kernel) if groups == 1 else (image[:, :, :, places], kernel[:, :, places])
        parts.append(_scattered(part, filters, strides, pads, more))
    y = concat(parts, 3)
    if bias is not None:
        y = tf.nn.bias_add(y, context.value(bias).tensor)
    return as_given(y, spatial, single)


def _scattered(
    image: Tensor, kernel: Tensor, strides: Sequence[int], pads: Sequence[int], more: Sequence[int]
) -> Tensor:
    batch, height, width, channels = (int(size) for size in image.shape)
    rows, columns, _, filters = (int(size) for size in kernel.shape)
    whole = [
        (count - 1) * stride + size
        for count, stride, size in zip((height, width), strides, (rows, columns), strict=True)
    ]
    # One product for all taps; each tap's part is then added up where it falls.
    matrix = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [channels, rows * columns * filters])
    placed = product_of(tf.reshape(image, [-1, channels]), matrix)
    placed = tf.reshape(placed, [batch, height, width, rows * columns * filters])
    taps = [placed[:, :, :, i * filters : (i + 1) * filters] for i in range(rows * columns)]
    windows = Windows([batch, *whole, filters], (rows, columns), (strides[0], strides[1]), "VALID")
    y = windows.scatter(taps)
    # Padding of a transposed convolution cuts the result; output_padding gives rows back behind.
    sizes = [full - 2 * before + extra for full, before, extra in zip(whole, pads, more, strict=True)]
    y = pad(y, [[0, 0], *([0, max(b + s - f, 0)] for b, s, f in zip(pads, sizes, whole, strict=True)), [0, 0]])
    return crop(y, ALL, *(slice(before, before + size) for before, size in zip(pads, sizes, strict=True)))
