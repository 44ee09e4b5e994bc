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
from typing import Any

import tensorflow as tf

from authoring.windows import Pair, Windows, concat, output_and_padding

Tensor = Any

_LANES = 16
"""Columns that XNNPACK's matrix product computes at once."""

_COPY_COST = 40
"""Multiplications per lane that take as long as bringing one element into a patch and its gradient back (measured)."""

_MAX_BLOCK = 8

_DEPTHWISE = tf.raw_ops.DepthwiseConv2dNative

MAX_PATCH_BYTES = 64 << 20
"""Above this, patches would cost a device too much memory."""


def product(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """Multiply two matrices. In three dimensions, lest LiteRT's converter choose its slow FULLY_CONNECTED."""
    found = tf.matmul(
        tf.reshape(a, [1, *a.shape]), tf.reshape(b, [1, *b.shape]), transpose_a=transpose_a, transpose_b=transpose_b
    )
    return tf.reshape(found, found.shape[1:])


class _Blocks:
    """How x [B, H, W, C] and a kernel [kh, kw, C, N] are laid out as matrices, with ``block`` outputs in each patch."""

    def __init__(self, x: Sequence[int], kernel: Sequence[int], strides: Pair, padding: str, block: int) -> None:
        self.batch, height, self.width, self.channels = x
        self.kernel, self.block, self.stride = kernel, block, strides[1]
        self.across, self.left = output_and_padding(self.width, kernel[1], strides[1], padding)
        self.down, _ = output_and_padding(height, kernel[0], strides[0], padding)
        self.blocks = -(-self.across // block)
        step = strides[1] * block
        self.per_patch = -(-(strides[1] * (block - 1) + kernel[1]) // step)
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
        lanes = -(-self.block * self.kernel[3] // _LANES) * _LANES
        return float(self.rows * self.depth * (lanes + _COPY_COST))

    def patches(self, x: Tensor) -> Tensor:
        """[rows, depth]."""
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
        moved = [
            tf.pad(kernel, [[0, 0], [shift, columns - self.kernel[1] - shift], [0, 0], [0, 0]])
            for shift in self._shifts()
        ]
        return tf.reshape(concat(moved, 3), [self.depth, self.block * self.kernel[3]])

    def untoeplitz(self, matrix: Tensor) -> Tensor:
        """Adjoint of `toeplitz`."""
        columns = self.per_patch * self.stride * self.block
        spread = tf.reshape(matrix, [self.kernel[0], columns, self.channels, self.block * self.kernel[3]])
        parts = zip(self._shifts(), _split(spread, self.block), strict=True)
        return _sum([part[:, shift : shift + self.kernel[1]] for shift, part in parts])

    def outputs(self, matrix: Tensor) -> Tensor:
        """[rows, block · N] as an image."""
        y = tf.reshape(matrix, [self.batch, self.down, self.blocks * self.block, self.kernel[3]])
        return y[:, :, : self.across] if self.blocks * self.block > self.across else y

    def unoutputs(self, dy: Tensor) -> Tensor:
        """Adjoint of `outputs`."""
        missing = self.blocks * self.block - self.across
        dy = tf.pad(dy, [[0, 0], [0, 0], [0, missing], [0, 0]]) if missing else dy
        return tf.reshape(dy, [self.rows, self.block * self.kernel[3]])

    def _shifts(self) -> list[int]:
        return [self.stride * v for v in range(self.block)]

    def _fit(self, x: Tensor, before: int, columns: int) -> Tensor:
        x = x[:, :, max(-before, 0) :, :] if before < 0 else x
        after = columns - x.shape[2] - max(before, 0)
        x = x[:, :, :after, :] if after < 0 else x
        if before > 0 or after > 0:
            x = tf.pad(x, [[0, 0], [0, 0], [max(before, 0), max(after, 0)], [0, 0]])
        return x


def convolution(x: Tensor, kernel: Tensor, strides: Pair, padding: str) -> Tensor | None:
    """Convolve x [B, H, W, C] with a kernel [kh, kw, C, N]; none if the patches would take too much memory."""
    layouts = (_Blocks(x.shape, kernel.shape, strides, padding, block) for block in range(1, _MAX_BLOCK + 1))
    layout = min(layouts, key=lambda found: found.cost)
    if layout.rows * layout.depth * 4 > MAX_PATCH_BYTES:
        return None

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        patches, matrix = layout.patches(x), layout.toeplitz(kernel)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dy = layout.unoutputs(dy)
            dx = layout.scatter(product(dy, matrix, transpose_b=True))
            return dx, layout.untoeplitz(product(patches, dy, transpose_a=True))

        return layout.outputs(product(patches, matrix)), gradient

    found: Tensor = tf.custom_gradient(convolve)(x, kernel)
    return found


def depthwise_convolution(x: Tensor, kernel: Tensor, strides: Pair, padding: str) -> Tensor:
    """Convolve each channel of x [B, H, W, C] with its own filters [kh, kw, C, M]; the result has C · M channels.

    LiteRT's own operator is fast with a variable filter. The gradient by the input is that operator too: over dy dilated
    by the strides, with the filter turned round.
    """
    height, width, channels, multiplier = kernel.shape
    total = channels * multiplier
    repeated = tf.reshape(concat([tf.expand_dims(x, 4)] * multiplier, 4), [*x.shape[:3], total])
    windows = Windows(repeated.shape, (height, width), strides, padding)

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        y = _DEPTHWISE(input=x, filter=kernel, strides=[1, *strides, 1], padding=padding)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            sums = [tf.reduce_sum(tap * dy, axis=[0, 1, 2]) for tap in windows.taps(x)]
            turned = tf.reverse(kernel, [0, 1])
            dx = _DEPTHWISE(input=windows.dilated(dy), filter=turned, strides=[1, 1, 1, 1], padding="VALID")
            return dx, tf.reshape(concat(sums, 0), kernel.shape)

        return y, gradient

    found: Tensor = tf.custom_gradient(convolve)(repeated, tf.reshape(kernel, [height, width, total, 1]))
    return found


def _split(x: Tensor, parts: int) -> list[Tensor]:
    size = x.shape[-1] // parts
    return [x[..., i * size : (i + 1) * size] for i in range(parts)]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return list(itertools.accumulate(parts, lambda total, part: total + part))[-1]
