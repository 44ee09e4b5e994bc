"""Depthwise convolutions as matrix products, one for each channel.

LiteRT's own operator, with a variable filter, is outside XNNPACK: each step into and out of it costs memory traffic, and
it has no gradient by the filter. Here the image is turned channels first and cut into strips of rows; a strip's outputs
are its pixels times a Toeplitz matrix made of the channel's filter. Wide images, where that matrix is mostly zeros, keep
LiteRT's operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedgrass.authoring.convolution import in_parts
from fedgrass.authoring.windows import ALL, Pair, Windows, concat, crop, output_and_padding, pad

Tensor: TypeAlias = tf.Tensor

_LANES = 16
"""Columns that XNNPACK's matrix product computes at once."""

_MAX_STRIP = 8

MAX_WASTE = 24
"""Multiplications, those by zero included, for each one needed, above which LiteRT's operator is faster (measured)."""

_DEPTHWISE = tf.raw_ops.DepthwiseConv2dNative


def depthwise_convolution(x: Tensor, kernel: Tensor, strides: Pair, padding: str) -> Tensor:
    """Convolve each channel with its own filters.

    Parameters
    ----------
    x
        [B, H, W, C], of a fixed shape.
    kernel
        [kh, kw, C, M].
    strides
        Along height and width.
    padding
        ``SAME`` or ``VALID``, as of TensorFlow.

    Returns
    -------
    Tensor
        [B, H', W', C · M].
    """
    height, width, channels, multiplier = kernel.shape
    total = channels * multiplier
    # Each channel once for each of its filters: then every channel has one filter, and there is one case.
    repeated = tf.reshape(concat([tf.expand_dims(x, 4)] * multiplier, 4), [*x.shape[:3], total])
    kernel = tf.reshape(kernel, [height, width, total])
    layouts = (_Strips(repeated.shape, (height, width), strides, padding, rows) for rows in range(1, _MAX_STRIP + 1))
    layout = min(layouts, key=lambda found: found.waste)
    # Wide images leave the Toeplitz matrix mostly zeros.
    convolve = _by_operator(repeated.shape, strides, padding) if layout.waste > MAX_WASTE else _by_strips(layout)
    found: Tensor = tf.custom_gradient(convolve)(repeated, kernel)
    return found


@dataclass(frozen=True)
class _Rows:
    """How the rows of images are dealt out to strips: each has its ``own``, and sees some ``above`` and ``below`` them."""

    height: int
    width: int
    own: int
    above: int
    below: int

    @property
    def seen(self) -> range:
        """Rows that a strip sees, counted from its own first one."""
        return range(-self.above, self.own + self.below)


class _Strips:
    """Images x [B, H, W, C] and their convolutions y as ``count`` strips for each image, ``rows`` of y in each.

    A strip of y is a product of the rows of x that it depends on and a matrix; so is a strip of the gradient by x, of the
    rows of dy that depend on it.
    """

    def __init__(self, x: Sequence[int], kernel: Pair, strides: Pair, padding: str, rows: int) -> None:
        self._batch, height, width, self._channels = x
        self._kernel, self._strides = kernel, strides
        down, self._top = output_and_padding(height, kernel[0], strides[0], padding)
        across, self._left = output_and_padding(width, kernel[1], strides[1], padding)
        # The whole image is one strip: it has no neighbours to look at.
        if rows >= down:
            self.count = 1
            self.x, self.y = _Rows(height, width, height, 0, 0), _Rows(down, across, down, 0, 0)
            return
        own = rows * strides[0]
        self.count = max(-(-down // rows), -(-height // own))
        self.x = _Rows(height, width, own, self._top, max(kernel[0] - strides[0] - self._top, 0))
        # Rows of dy that a row of x had a part in: the gradient by x looks in the other direction.
        above, below = (kernel[0] - 1 - self._top) // strides[0], -(-self._top // strides[0])
        self.y = _Rows(down, across, rows, above, below)

    @property
    def waste(self) -> float:
        """Multiplications for each one needed; infinite if a strip would see beyond the next one."""
        # `widen` gives a strip the edges of its direct neighbours only.
        if any(max(rows.above, rows.below) > rows.own for rows in (self.x, self.y)):
            return float("inf")
        lanes = -(-self.y.own * self.y.width // _LANES) * _LANES
        needed = self.y.height * self.y.width * self._kernel[0] * self._kernel[1]
        return self.count * len(self.x.seen) * self.x.width * lanes / needed

    def cut(self, image: Tensor, rows: _Rows) -> Tensor:
        """[C, strips of all images, pixels of their own]."""
        # Channels first: one product for each channel, and the batch becomes strips.
        flat = tf.transpose(in_parts(image), [2, 0, 1])
        lines = tf.reshape(flat, [-1, rows.height, rows.width])
        lines = pad(lines, [[0, 0], [0, self.count * rows.own - rows.height], [0, 0]])
        return tf.reshape(lines, [self._channels, self._batch * self.count, rows.own * rows.width])

    def join(self, strips: Tensor, rows: _Rows) -> Tensor:
        """Adjoint of `cut`."""
        lines = tf.reshape(strips, [-1, self.count * rows.own, rows.width])
        flat = tf.reshape(crop(lines, ALL, slice(rows.height)), [self._channels, -1])
        return tf.reshape(tf.transpose(flat), [self._batch, rows.height, rows.width, self._channels])

    def widen(self, strips: Tensor, rows: _Rows) -> Tensor:
        """[C, strips, pixels seen]."""
        cells = tf.reshape(strips, [self._channels * self._batch, self.count, rows.own * rows.width])
        seen = [cells]
        # Shifted by one strip: the edge above the first and below the last is zeros.
        if rows.above:
            last = cells[:, :-1, (rows.own - rows.above) * rows.width :]
            seen.insert(0, pad(last, [[0, 0], [1, 0], [0, 0]]))
        if rows.below:
            first = cells[:, 1:, : rows.below * rows.width]
            seen.append(pad(first, [[0, 0], [0, 1], [0, 0]]))
        return tf.reshape(concat(seen, 2), [self._channels, strips.shape[1], -1])

    def places(self, of_x: range, of_y: range) -> NDArray[np.generic]:
        """For each tap of the kernel, 1 where it joins pixels of these rows [kh · kw, pixels of x, pixels of y], else 0."""
        found = np.zeros([*self._kernel, len(of_x), self.x.width, len(of_y), self.y.width], np.float32)
        for a, b, i, j in np.ndindex(*self._kernel, len(of_y), self.y.width):
            row = of_y[i] * self._strides[0] + a - self._top - of_x.start
            column = j * self._strides[1] + b - self._left
            if 0 <= row < len(of_x) and 0 <= column < self.x.width:
                found[a, b, row, column, i, j] = 1.0
        return found.reshape(self._kernel[0] * self._kernel[1], len(of_x) * self.x.width, -1)


_Convolve = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]]


def _by_strips(layout: _Strips) -> _Convolve:
    x_rows, y_rows = layout.x, layout.y
    # Constants of the graph: which filter value joins which pixels never changes.
    forward = layout.places(x_rows.seen, range(y_rows.own))
    back = layout.places(range(x_rows.own), y_rows.seen).transpose(0, 2, 1)

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        channels = kernel.shape[2]
        taps = tf.reshape(tf.transpose(tf.reshape(kernel, [-1, channels])), [1, channels, -1])
        strips = layout.widen(layout.cut(x, x_rows), x_rows)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            dy = layout.cut(dy, y_rows)
            dx = layout.join(tf.matmul(layout.widen(dy, y_rows), _matrices(taps, back)), x_rows)
            spread = tf.reshape(tf.matmul(strips, dy, transpose_a=True), [1, channels, -1])
            # All positions of a filter value are summed by one product with the same constants.
            dtaps = tf.matmul(spread, np.ascontiguousarray(forward.reshape(len(forward), -1).T)[None])
            return dx, tf.reshape(tf.transpose(tf.reshape(dtaps, [channels, -1])), kernel.shape)

        y = tf.matmul(strips, _matrices(taps, forward))
        return layout.join(y, y_rows), gradient

    return convolve


def _matrices(taps: Tensor, places: NDArray[np.generic]) -> Tensor:
    """[C, …] from taps [1, C, kh · kw] and places [kh · kw, …]."""
    return tf.reshape(tf.matmul(taps, places.reshape(1, len(places), -1)), [-1, *places.shape[1:]])


def _by_operator(shape: Sequence[int], strides: Pair, padding: str) -> _Convolve:
    """The gradient by the input is the operator too: over dy dilated by the strides, with the filter turned round."""

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        windows = Windows(shape, (kernel.shape[0], kernel.shape[1]), strides, padding)
        filters = tf.expand_dims(kernel, 3)
        y = _DEPTHWISE(input=x, filter=filters, strides=[1, *strides, 1], padding=padding)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            # LiteRT's operator has no gradient by the filter: one sum for each tap of the kernel.
            sums = [tf.reduce_sum(tap * dy, axis=[0, 1, 2]) for tap in windows.taps(x)]
            turned = tf.reverse(filters, [0, 1])
            dx = _DEPTHWISE(input=windows.dilated(dy), filter=turned, strides=[1, 1, 1, 1], padding="VALID")
            return dx, tf.reshape(concat(sums, 0), kernel.shape)

        return y, gradient

    return convolve
