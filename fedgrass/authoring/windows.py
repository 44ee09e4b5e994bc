"""Sliding windows over images, in slices, pads and concatenations that LiteRT's XNNPACK runs at the speed of memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

Tensor: TypeAlias = tf.Tensor
Pair = tuple[int, int]

ALL = slice(None)

# XNNPACK takes no more; a longer concatenation would fall back to a slow kernel.
_MAX_PARTS = 5


def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """``tf.concat`` of any number of tensors, a few at a time."""
    found = list(parts)
    while len(found) > 1:
        # A tree rather than a chain: each element is copied once for each level, not once for each part.
        groups = [found[i : i + _MAX_PARTS] for i in range(0, len(found), _MAX_PARTS)]
        found = [tf.concat(group, axis) if len(group) > 1 else group[0] for group in groups]
    return found[0]


def crop(x: Tensor, *ranges: slice) -> Tensor:
    """Slice the first axes; x itself if that is all of it, since LiteRT would copy it."""
    whole = all(found.indices(size) == (0, size, 1) for found, size in zip(ranges, x.shape, strict=False))
    return x if whole else x[ranges]


def pad(x: Tensor, pads: Sequence[Sequence[int]], value: float = 0.0) -> Tensor:
    """Pad a tensor, with the last axes joined where they can be: XNNPACK pads row by row, and short rows are slow.

    Parameters
    ----------
    x
        Of a fixed shape.
    pads
        For each axis how much comes before and after.
    value
        What it is padded with.

    Returns
    -------
    Tensor
        As of ``tf.pad``.
    """
    sizes, widths = list(x.shape), [list(width) for width in pads]
    if not any(sum(width) for width in widths):
        return x
    shape = [size + sum(width) for size, width in zip(sizes, widths, strict=True)]
    # An axis without padding joins the one before it, and so each row that is padded becomes as long as it can be.
    while not any(widths[-1]):
        inner = sizes.pop()
        sizes[-1] *= inner
        widths = [*widths[:-2], [inner * width for width in widths[-2]]]
    return tf.reshape(tf.pad(tf.reshape(x, sizes), widths, constant_values=value), shape)


def reach(taps: int, dilation: int) -> int:
    """Return how many places a kernel spans, from its first tap to its last."""
    return (taps - 1) * dilation + 1


def output_and_padding(size: int, kernel: int, stride: int, padding: str) -> Pair:
    """Count the windows along an axis, and the zeros before it, by TensorFlow's rules.

    Parameters
    ----------
    size
        Length of the axis.
    kernel
        Length of a window.
    stride
        From one window to the next.
    padding
        ``SAME`` or ``VALID``.

    Returns
    -------
    tuple
        Number of windows, and of zeros before the axis.
    """
    if padding == "VALID":
        return (size - kernel) // stride + 1, 0
    count = -(-size // stride)
    return count, max((count - 1) * stride + kernel - size, 0) // 2


class Windows:
    """The windows of a kernel over [B, H, W, C].

    A window's *tap* (a, b) is its element in row a and column b; over all windows it is a tensor [B, windows down,
    windows across, C].

    Parameters
    ----------
    shape
        [B, H, W, C].
    kernel, strides
        Rows and columns.
    padding
        ``"VALID"`` or ``"SAME"``.
    dilations
        From one tap to the next, along rows and columns.
    """

    def __init__(
        self, shape: Sequence[int], kernel: Pair, strides: Pair, padding: str, dilations: Pair = (1, 1)
    ) -> None:
        self._shape = tuple(shape)
        self._kernel, self._strides, self._dilations = kernel, strides, dilations
        reaches = [reach(*axis) for axis in zip(kernel, dilations, strict=True)]
        axes = zip(self._shape[1:3], reaches, strides, strict=True)
        self._counts, self._before = zip(*(output_and_padding(*axis, padding) for axis in axes), strict=True)
        # Rows and columns up to a whole number of strides, so that pixels can be sorted by phase.
        self._padded = tuple(
            (count + -(-k // s) - 1) * s for count, k, s in zip(self._counts, reaches, strides, strict=True)
        )

    def taps(self, x: Tensor, outside: float = 0.0) -> list[Tensor]:
        """Every tap of ``x``, row by row; places in the padding hold ``outside``."""
        (down, across), (rows, columns) = self._counts, self._strides
        batch, channels = self._shape[0], self._shape[3]
        x = self._resize(x, self._shape[1:3], self._padded, self._before, outside)
        grid = [batch, self._padded[0] // rows, self._padded[1] // columns, channels]
        if self._strides == (1, 1):
            # Without strides every window begins at a pixel of its own: there is nothing to sort apart.
            phases = {(0, 0): x}
        else:
            # Pixels sorted by their place within a stride: then every tap is one plain slice, with no stride of its own.
            x = tf.reshape(x, [batch, grid[1], rows, grid[2], columns * channels])
            phases = {
                (i, j): tf.reshape(x[:, :, i : i + 1, :, j * channels : (j + 1) * channels], grid)
                for i, j in itertools.product(range(rows), range(columns))
            }
        found = []
        for a, b in self._places():
            phase, top, left = phases[a % rows, b % columns], a // rows, b // columns
            found.append(crop(phase, ALL, slice(top, top + down), slice(left, left + across)))
        return found

    def scatter(self, parts: Sequence[Tensor]) -> Tensor:
        """Add each tap of ``parts`` to its place in zeros of the image's shape: the adjoint of `taps`."""
        (down, across), (rows, columns) = self._counts, self._strides
        batch, channels = self._shape[0], self._shape[3]
        height, width = self._padded[0] // rows, self._padded[1] // columns
        phases: dict[Pair, Tensor] = {}
        for (a, b), part in zip(self._places(), parts, strict=True):
            top, left = a // rows, b // columns
            placed = pad(part, [[0, 0], [top, height - down - top], [left, width - across - left], [0, 0]])
            key = (a % rows, b % columns)
            # Windows overlap: what several of them say of one pixel is added up.
            phases[key] = phases[key] + placed if key in phases else placed
        if self._strides == (1, 1):
            x = phases[0, 0]
        else:
            # A stride longer than the kernel leaves pixels that no window covers.
            empty = tf.zeros([batch, height, width, channels])
            lines = []
            for i in range(rows):
                line = concat([phases.get((i, j), empty) for j in range(columns)], 3)
                lines.append(tf.reshape(line, [batch, height, 1, width * columns * channels]))
            x = tf.reshape(concat(lines, 2), [batch, *self._padded, channels])
        before = (-self._before[0], -self._before[1])
        return self._resize(x, self._padded, self._shape[1:3], before, 0.0)

    def dilated(self, y: Tensor) -> Tensor:
        """``y`` [B, windows down, windows across, C] with zeros between, around which a kernel fits as often as x is large."""
        sizes = [(count - 1) * stride + 1 for count, stride in zip(self._counts, self._strides, strict=True)]
        shape = [self._shape[0], *sizes, self._shape[3]]
        y = Windows(shape, (1, 1), self._strides, "VALID").scatter([y])
        pads = [[0, 0]]
        for axis, size in enumerate(sizes):
            before = self._kernel[axis] - 1 - self._before[axis]
            pads.append([before, self._shape[axis + 1] + self._kernel[axis] - 1 - before - size])
        return pad(y, [*pads, [0, 0]])

    def _places(self) -> list[Pair]:
        rows, columns = (range(0, k * d, d) for k, d in zip(self._kernel, self._dilations, strict=True))
        return list(itertools.product(rows, columns))

    @staticmethod
    def _resize(x: Tensor, size: Sequence[int], wanted: Sequence[int], before: Sequence[int], outside: float) -> Tensor:
        """Shift rows and columns by ``before`` (negative: drop them), and cut or pad at the end."""
        slices, pads = [ALL], [[0, 0]]
        for have, want, shift in zip(size, wanted, before, strict=True):
            slices.append(slice(max(-shift, 0), min(have, want - shift)))
            pads.append([max(shift, 0), max(want - shift - have, 0)])
        return pad(crop(x, *slices), [*pads, [0, 0]], outside)
