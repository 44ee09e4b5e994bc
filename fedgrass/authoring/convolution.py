"""Convolutions as matrix products.

LiteRT's convolution takes its slow path when the filter is not a constant, and in training it never is; its matrix
product is fast either way. `convolution` therefore multiplies a matrix of patches by the filter. When there are few
filters, a patch covers several neighbouring outputs at once, and the filter becomes a block of a Toeplitz matrix: fewer
copies of the input, and wider vectors, for some multiplications by zero.

The gradients are the same products transposed: filter by patchesᵀ · dy, input by scattering dy · filterᵀ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.windows import ALL, Pair, Windows, concat, crop, output_and_padding, pad

Tensor: TypeAlias = tf.Tensor

LANES = 16
"""Columns that XNNPACK's matrix product computes at once."""

_COPY_COST = 40
"""Multiplications per lane that take as long as bringing one element into a patch and its gradient back (measured)."""

_MAX_BLOCK = 8

_MAX_PARTS, _MIN_ROWS = 4, 200
"""Into how many products one of many rows is cut, and how many rows each has at least (measured)."""

MAX_PATCH_BYTES = 64 << 20
"""Above this, patches would cost a device too much memory."""


def in_parts(x: Tensor) -> Tensor:
    """Shape x [..., C] as [parts, rows, C].

    What uses a tensor should use it in this shape: XNNPACK copies a tensor that is used in more than one.
    """
    rows = x.shape.num_elements() // x.shape[-1]
    # Rows must divide evenly, so that the parts are a plain reshape.
    parts = max(n for n in range(1, _MAX_PARTS + 1) if n == 1 or (rows % n == 0 and rows >= n * _MIN_ROWS))
    return tf.reshape(x, [parts, -1, x.shape[-1]])


def product(a: Tensor, b: Tensor, *, transpose_b: bool = False) -> Tensor:
    """Multiply two matrices, in three dimensions, lest LiteRT's converter choose its slow FULLY_CONNECTED.

    Parameters
    ----------
    a
        [M, K].
    b
        [K, N], or [N, K] if ``transpose_b``.
    transpose_b
        Whether ``b`` is multiplied transposed.

    Returns
    -------
    Tensor
        [M, N].
    """
    found = tf.matmul(in_parts(a), tf.expand_dims(b, 0), transpose_b=transpose_b)
    # Joined again without a copy: the parts are neighbours in memory.
    return tf.reshape(found, [-1, found.shape[2]])


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ · b: parts of many rows fit the cache and keep several threads busy; their sum is the product."""
    found = tf.matmul(in_parts(a), in_parts(b), transpose_a=True)
    return tf.reduce_sum(found, axis=0) if found.shape[0] > 1 else tf.reshape(found, found.shape[1:])


class _Blocks:
    """How x [B, H, W, C] and a kernel [kh, kw, C, N] are laid out as matrices, with ``block`` outputs in each patch."""

    def __init__(self, x: Sequence[int], kernel: Sequence[int], strides: Pair, padding: str, block: int) -> None:
        self.batch, height, self.width, self.channels = x
        self.kernel, self.block, self.stride = kernel, block, strides[1]
        self.across, self.left = output_and_padding(self.width, kernel[1], strides[1], padding)
        self.down, _ = output_and_padding(height, kernel[0], strides[0], padding)
        self.blocks = -(-self.across // block)
        # Pixels from one patch to the next.
        step = strides[1] * block
        self.per_patch = -(-(strides[1] * (block - 1) + kernel[1]) // step)
        # Columns of the input with padding, a whole number of steps, so that reshaping cuts it into cells.
        self.columns = (self.blocks + self.per_patch - 1) * step
        self.height = height
        size = step * self.channels
        cells = (self.batch, height, self.columns // step, size)
        self._across = Windows(cells, (1, self.per_patch), (1, 1), "VALID")
        lines = (self.batch, height, self.blocks, self.per_patch * size)
        self._down = Windows(lines, (kernel[0], 1), (strides[0], 1), padding)
        self.rows = self.batch * self.down * self.blocks
        self.depth = kernel[0] * self.per_patch * size

    @property
    def cost(self) -> float:
        # XNNPACK fills whole vectors: 17 columns take as long as 32.
        lanes = -(-self.block * self.kernel[3] // LANES) * LANES
        return float(self.rows * self.depth * (lanes + _COPY_COST))

    def patches(self, x: Tensor) -> Tensor:
        """[rows, depth]."""
        # Patches in two moves, along rows and then along columns: each is a few slices instead of one for each tap.
        x = self._fit(x, self.left, self.columns)
        cells = tf.reshape(x, [self.batch, self.height, self.blocks + self.per_patch - 1, -1])
        lines = concat(self._across.taps(cells), 3)
        return tf.reshape(concat(self._down.taps(lines), 3), [self.rows, self.depth])

    def scatter(self, patches: Tensor) -> Tensor:
        """Adjoint of `patches`."""
        patches = tf.reshape(patches, [self.batch, self.down, self.blocks, self.depth])
        lines = self._down.scatter(_split(patches, self.kernel[0]))
        cells = self._across.scatter(_split(lines, self.per_patch))
        x = tf.reshape(cells, [self.batch, self.height, self.columns, self.channels])
        return self._fit(x, -self.left, self.width)

    def toeplitz(self, kernel: Tensor) -> Tensor:
        """[depth, block · N]: column block v is the kernel moved by v strides."""
        columns = self.per_patch * self.stride * self.block
        # Filters side by side, each moved by one stride more: one product then gives `block` neighbouring outputs.
        moved = [
            pad(kernel, [[0, 0], [shift, columns - self.kernel[1] - shift], [0, 0], [0, 0]]) for shift in self._shifts()
        ]
        return tf.reshape(concat(moved, 3), [self.depth, self.block * self.kernel[3]])

    def untoeplitz(self, matrix: Tensor) -> Tensor:
        """Adjoint of `toeplitz`."""
        columns = self.per_patch * self.stride * self.block
        spread = tf.reshape(matrix, [self.kernel[0], columns, self.channels, self.block * self.kernel[3]])
        parts = zip(self._shifts(), _split(spread, self.block), strict=True)
        return _sum([crop(part, ALL, slice(shift, shift + self.kernel[1])) for shift, part in parts])

    def outputs(self, matrix: Tensor) -> Tensor:
        """[rows, block · N] as an image."""
        # The last block may reach beyond the image; what it gives there is cut off.
        y = tf.reshape(matrix, [self.batch, self.down, self.blocks * self.block, self.kernel[3]])
        return crop(y, ALL, ALL, slice(self.across))

    def unoutputs(self, dy: Tensor) -> Tensor:
        """Adjoint of `outputs`."""
        missing = self.blocks * self.block - self.across
        dy = pad(dy, [[0, 0], [0, 0], [0, missing], [0, 0]])
        return tf.reshape(dy, [self.rows, self.block * self.kernel[3]])

    def _shifts(self) -> list[int]:
        return [self.stride * v for v in range(self.block)]

    def _fit(self, x: Tensor, before: int, columns: int) -> Tensor:
        x = crop(x, ALL, ALL, slice(max(-before, 0), min(x.shape[2], columns - before)))
        return pad(x, [[0, 0], [0, 0], [max(before, 0), columns - x.shape[2] - max(before, 0)], [0, 0]])


def convolution(x: Tensor, kernel: Tensor, strides: Pair, padding: str) -> Tensor | None:
    """Convolve images with a kernel by way of a product of matrices, whose gradients are products too.

    Parameters
    ----------
    x
        [B, H, W, C], of a fixed shape.
    kernel
        [kh, kw, C, N].
    strides
        Along height and width.
    padding
        ``SAME`` or ``VALID``, as of TensorFlow.

    Returns
    -------
    Tensor or None
        [B, H', W', N]; None if the patches would take more than ``MAX_PATCH_BYTES``.
    """
    # Few filters want wide blocks, many want none; which is cheapest depends on all the sizes, so each is counted.
    layouts = (_Blocks(x.shape, kernel.shape, strides, padding, block) for block in range(1, _MAX_BLOCK + 1))
    # Ties go to the smaller block, which is listed first.
    layout = min(layouts, key=lambda found: found.cost)
    # The caller falls back to LiteRT's own convolution: slower, and within the device's memory.
    if layout.rows * layout.depth * 4 > MAX_PATCH_BYTES:
        return None

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        patches, matrix = layout.patches(x), layout.toeplitz(kernel)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dy = layout.unoutputs(dy)
            dx = layout.scatter(product(dy, matrix, transpose_b=True))
            return dx, layout.untoeplitz(transposed_product(patches, dy))

        return layout.outputs(product(patches, matrix)), gradient

    found: Tensor = tf.custom_gradient(convolve)(x, kernel)
    return found


def bias_add(x: Tensor, bias: Tensor, data_format: str = "NHWC") -> Tensor:
    """Add a bias to the last axis; few channels in rows as long as the last two axes, since XNNPACK adds row by row.

    Parameters
    ----------
    x
        [B, …, C].
    bias
        [C].
    data_format
        ``NHWC``; any other is left to TensorFlow.

    Returns
    -------
    Tensor
        Of the shape of ``x``.
    """
    if data_format != "NHWC" or x.shape.rank < 3:
        return _tf_bias_add(x, bias, data_format)
    # Wide enough to fill a vector: TensorFlow's own addition, in the shape of the products around it.
    if x.shape[-1] >= LANES:
        return tf.reshape(_tf_bias_add(in_parts(x), bias), x.shape)
    width, channels = x.shape[-2:]

    def add(x: Tensor, bias: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        # The bias repeated along the row costs one small tensor, and spares a short addition for each pixel.
        row = tf.reshape(bias * tf.ones([width, 1]), [width * channels])

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            summed = tf.reduce_sum(tf.reshape(dy, [-1, width * channels]), axis=0)
            return dy, tf.reduce_sum(tf.reshape(summed, [width, channels]), axis=0)

        return tf.reshape(tf.reshape(x, [-1, width * channels]) + row, x.shape), gradient

    found: Tensor = tf.custom_gradient(add)(x, bias)
    return found


def relu(x: Tensor) -> Tensor:
    """In the shape that `bias_add` and the products use."""
    if x.shape.rank < 3 or x.shape[-1] < LANES:
        return _tf_relu(x)
    return tf.reshape(_tf_relu(in_parts(x)), x.shape)


_tf_bias_add, _tf_relu = tf.nn.bias_add, tf.nn.relu


def _split(x: Tensor, parts: int) -> list[Tensor]:
    size = x.shape[-1] // parts
    before = [ALL] * (x.shape.rank - 1)
    return [crop(x, *before, slice(i * size, (i + 1) * size)) for i in range(parts)]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return list(itertools.accumulate(parts, lambda total, part: total + part))[-1]
