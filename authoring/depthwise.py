"""Depthwise convolutions as matrix products, one for each channel.

LiteRT's own operator, with a variable filter, is outside XNNPACK: each step into and out of it costs memory traffic, and
it has no gradient by the filter. Here the image is turned channels first and cut into strips of rows; a strip's outputs
are its pixels times a Toeplitz matrix made of the channel's filter. Wide images, where that matrix is mostly zeros, keep
LiteRT's operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from authoring.windows import Pair, Windows, concat, output_and_padding, pad

Tensor = Any

_LANES = 16
"""Columns that XNNPACK's matrix product computes at once."""

_MAX_STRIP = 8

MAX_WASTE = 24
"""Multiplications, those by zero included, for each one needed, above which LiteRT's operator is faster (measured)."""

_DEPTHWISE = tf.raw_ops.DepthwiseConv2dNative


def depthwise_convolution(x: Tensor, kernel: Tensor, strides: Pair, padding: str) -> Tensor:
    """Convolve each channel of x [B, H, W, C] with its own filters [kh, kw, C, M]; the result has C · M channels."""
    height, width, channels, multiplier = kernel.shape
    total = channels * multiplier
    repeated = tf.reshape(concat([tf.expand_dims(x, 4)] * multiplier, 4), [*x.shape[:3], total])
    kernel = tf.reshape(kernel, [height, width, total])
    layouts = (_Strips(repeated.shape, (height, width), strides, padding, rows) for rows in range(1, _MAX_STRIP + 1))
    layout = min(layouts, key=lambda found: found.waste)
    convolve = _by_operator(repeated.shape, strides, padding) if layout.waste > MAX_WASTE else _by_strips(layout)
    found: Tensor = tf.custom_gradient(convolve)(repeated, kernel)
    return found


class _Strips:
    """Images x [B, H, W, C] as strips of ``rows`` rows of output, for each channel [C, strips of all images, pixels].

    A strip's pixels are those of its own rows, and of the rows above the next strip's kernels reach back to: ``overlap``.
    """

    def __init__(self, x: Sequence[int], kernel: Pair, strides: Pair, padding: str, rows: int) -> None:
        self._batch, self._height, self._width, self._channels = x
        self._down, top = output_and_padding(x[1], kernel[0], strides[0], padding)
        self._across, self._left = output_and_padding(x[2], kernel[1], strides[1], padding)
        self._kernel, self._strides, self._rows = kernel, strides, min(rows, self._down)
        self._count = -(-self._down // self._rows)
        if self._count == 1:
            # The matrix knows the image's edges: nothing needs padding.
            self._top, self._step, self._overlap = top, self._height, 0
        else:
            self._top, self._step = 0, self._rows * strides[0]
            self._overlap = max(kernel[0] - strides[0], 0)
        self._before = top - self._top
        self._depth = (self._step + self._overlap) * self._width
        self.columns = self._rows * self._across

    @property
    def waste(self) -> float:
        """Multiplications for each one needed; infinite if a strip would reach beyond the next one."""
        if self._overlap > self._step:
            return float("inf")
        lanes = -(-self.columns // _LANES) * _LANES
        needed = self._down * self._across * self._kernel[0] * self._kernel[1]
        return self._count * self._depth * lanes / needed

    def cut(self, x: Tensor) -> Tensor:
        """[C, strips, pixels]."""
        flat = tf.transpose(tf.reshape(x, [-1, self._channels]))
        rows = tf.reshape(flat, [self._channels * self._batch, self._height, self._width])
        if self._count > 1:
            rows = self._fit(rows, self._before, self._padded_height)
        if self._overlap:
            cells = tf.reshape(rows, [-1, self._count + 1, self._step * self._width])
            rows = concat([cells[:, :-1], cells[:, 1:, : self._overlap * self._width]], 2)
        return tf.reshape(rows, [self._channels, self._batch * self._count, self._depth])

    def join(self, strips: Tensor) -> Tensor:
        """Adjoint of `cut`."""
        rows = tf.reshape(strips, [self._channels * self._batch, self._count, self._depth])
        if self._overlap:
            own = self._step * self._width
            cells = pad(rows[:, :, :own], [[0, 0], [0, 1], [0, 0]])
            rows = cells + pad(rows[:, :, own:], [[0, 0], [1, 0], [0, 2 * own - self._depth]])
        if self._count > 1:
            rows = tf.reshape(rows, [self._channels * self._batch, self._padded_height, self._width])
            rows = self._fit(rows, -self._before, self._height)
        flat = tf.reshape(rows, [self._channels, self._batch * self._height * self._width])
        return tf.reshape(tf.transpose(flat), [self._batch, self._height, self._width, self._channels])

    def outputs(self, y: Tensor) -> Tensor:
        """[C, strips, outputs of a strip] as images."""
        rows = tf.reshape(y, [self._channels * self._batch, self._count * self._rows, self._across])
        flat = tf.reshape(
            rows[:, : self._down] if self._count * self._rows > self._down else rows, [self._channels, -1]
        )
        return tf.reshape(tf.transpose(flat), [self._batch, self._down, self._across, self._channels])

    def unoutputs(self, dy: Tensor) -> Tensor:
        """Adjoint of `outputs`."""
        flat = tf.transpose(tf.reshape(dy, [-1, self._channels]))
        rows = tf.reshape(flat, [self._channels * self._batch, self._down, self._across])
        rows = pad(rows, [[0, 0], [0, self._count * self._rows - self._down], [0, 0]])
        return tf.reshape(rows, [self._channels, self._batch * self._count, self.columns])

    def places(self) -> np.ndarray[Any, Any]:
        """For each tap of the kernel [kh · kw], 1 where it stands in the matrix [pixels · outputs of a strip], else 0."""
        found = np.zeros([*self._kernel, self._depth // self._width, self._width, self._rows, self._across], np.float32)
        for a, b, i, j in np.ndindex(*self._kernel, self._rows, self._across):
            row, column = i * self._strides[0] + a - self._top, j * self._strides[1] + b - self._left
            if 0 <= row < found.shape[2] and 0 <= column < self._width:
                found[a, b, row, column, i, j] = 1.0
        return found.reshape(self._kernel[0] * self._kernel[1], self._depth * self.columns)

    @property
    def _padded_height(self) -> int:
        return self._step * (self._count + (1 if self._overlap else 0))

    @staticmethod
    def _fit(rows: Tensor, before: int, height: int) -> Tensor:
        """Zeros before the rows (negative: drop some), and as many rows in all."""
        rows = rows[:, max(-before, 0) :]
        rows = rows[:, : height - max(before, 0)]
        return pad(rows, [[0, 0], [max(before, 0), height - rows.shape[1] - max(before, 0)], [0, 0]])


_Convolve = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]]


def _by_strips(layout: _Strips) -> _Convolve:
    places = layout.places()

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        height, width, channels = kernel.shape
        taps = tf.reshape(tf.transpose(tf.reshape(kernel, [height * width, channels])), [1, channels, height * width])
        strips = layout.cut(x)
        matrix = tf.reshape(tf.matmul(taps, places[None]), [channels, -1, layout.columns])

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dy = layout.unoutputs(dy)
            dx = layout.join(tf.matmul(dy, matrix, transpose_b=True))
            spread = tf.reshape(tf.matmul(strips, dy, transpose_a=True), [1, channels, -1])
            dtaps = tf.reshape(tf.matmul(spread, np.ascontiguousarray(places.T)[None]), [channels, height * width])
            return dx, tf.reshape(tf.transpose(dtaps), kernel.shape)

        return layout.outputs(tf.matmul(strips, matrix)), gradient

    return convolve


def _by_operator(shape: Sequence[int], strides: Pair, padding: str) -> _Convolve:
    """The gradient by the input is the operator too: over dy dilated by the strides, with the filter turned round."""

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        windows = Windows(shape, (kernel.shape[0], kernel.shape[1]), strides, padding)
        filters = tf.expand_dims(kernel, 3)
        y = _DEPTHWISE(input=x, filter=filters, strides=[1, *strides, 1], padding=padding)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            sums = [tf.reduce_sum(tap * dy, axis=[0, 1, 2]) for tap in windows.taps(x)]
            turned = tf.reverse(filters, [0, 1])
            dx = _DEPTHWISE(input=windows.dilated(dy), filter=turned, strides=[1, 1, 1, 1], padding="VALID")
            return dx, tf.reshape(concat(sums, 0), kernel.shape)

        return y, gradient

    return convolve
