"""Convolutions as matrix products.

LiteRT's convolution takes its slow path when the filter is not a constant, and in training it never is; its matrix
product is fast either way. `convolution` therefore multiplies a matrix of patches by the filter. When there are few
filters, a patch covers several neighbouring outputs at once, and the filter becomes a block of a Toeplitz matrix: fewer
copies of the input, and wider vectors, for some multiplications by zero.

The gradients are the same products transposed: filter by patchesᵀ · dy, input by scattering dy · filterᵀ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.windows import ALL, Pair, Windows, concat, crop, output_and_padding, pad, reach

Tensor: TypeAlias = tf.Tensor

LANES = 16
"""Columns that XNNPACK's matrix product computes at once."""

MOVE_COST = 8
"""Multiplications in a lane that take as long as reading and writing one element (measured)."""

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


class _Layout:
    """How x [B, H, W, C] and a kernel [kh, kw, C, N] are laid out as matrices, with ``block`` outputs in each patch.

    Parameters
    ----------
    x, kernel
        Their shapes.
    strides, dilations
        Of rows and columns.
    before
        Zeros above and to the left of x.
    counts
        Rows and columns of the output.
    block
        Neighbouring outputs of a row that one patch gives.
    """

    def __init__(
        self,
        x: Sequence[int],
        kernel: Sequence[int],
        strides: Pair,
        dilations: Pair,
        before: Pair,
        counts: Pair,
        block: int,
    ) -> None:
        self.batch, *self.size, self.channels = x
        self.kernel, self.block, self.stride = kernel, block, strides[1]
        self.before, (self.down, self.across) = before, counts
        self.blocks = -(-self.across // block)
        # Pixels from one patch to the next.
        step = strides[1] * block
        # Patches of single pixels skip those between the taps; wider ones have them, times zeros in the kernel.
        skip, self.gap = (dilations[1], 1) if step == 1 else (1, dilations[1])
        self.taps = reach(kernel[1], self.gap)
        self.per_patch = -(-(strides[1] * (block - 1) + self.taps) // step)
        # Rows and columns of the input with padding: whole numbers of steps, so that reshaping cuts it into cells.
        lines = (self.down + -(-reach(kernel[0], dilations[0]) // strides[0]) - 1) * strides[0]
        self.padded = [lines, (self.blocks + reach(self.per_patch, skip) - 1) * step]
        self._cells = [self.batch, lines, self.padded[1] // step, step * self.channels]
        self._across = Windows(self._cells, (1, self.per_patch), (1, 1), "VALID", (1, skip))
        self.depth = self.per_patch * step * self.channels
        shape = [self.batch, lines, self.blocks, self.depth]
        self._down = Windows(shape, (kernel[0], 1), (strides[0], 1), "VALID", (dilations[0], 1))
        self.rows = self.batch * self.down * self.blocks
        # A product for each row of the kernel spares patches of all rows; summing is cheaper then, unless filters are many.
        self.apart = (kernel[0] - 1) * block * kernel[3] < self._taps

    @property
    def cost(self) -> float:
        """What the convolution takes, in multiplications of a lane."""
        filters = self.block * self.kernel[3]
        # A line is copied out of the image in pieces, of which short ones take no less, and again for each row of the kernel.
        line = 2 * self.per_patch * max(self._cells[3], LANES // 2)
        rows = 2 * min((self.kernel[0] - 1) * filters, self._taps) + (self._taps if self.kernel[0] > 1 else 0)
        return self._products + MOVE_COST * self.rows * (line + rows)

    @property
    def cost_of_adjoint(self) -> float:
        """What `scatter` takes after its products."""
        return self._products + MOVE_COST * self.rows * (4 * self._taps + 6 * self.depth)

    @property
    def _taps(self) -> int:
        return self.kernel[0] * self.depth

    @property
    def _products(self) -> float:
        # XNNPACK fills whole vectors: 17 columns take as long as 32.
        return float(self.rows * self._taps * -(-self.block * self.kernel[3] // LANES) * LANES)

    @property
    def patch_bytes(self) -> int:
        """What all patches take."""
        return self.rows * self._taps * 4

    def patches(self, x: Tensor) -> list[Tensor]:
        """[rows, depth] of each row of the kernel, or [rows, kernel rows · depth] of all."""
        # In two moves, along rows and then along columns: each is a few slices instead of one for each tap.
        cells = tf.reshape(_fitted(x, self.before, self.padded), self._cells)
        lines = concat(self._across.taps(cells), 3)
        taps = self._down.taps(lines)
        return [tf.reshape(part, [self.rows, -1]) for part in (taps if self.apart else [concat(taps, 3)])]

    def scatter(self, patches: Sequence[Tensor]) -> Tensor:
        """Adjoint of `patches`."""
        parts = [tf.reshape(part, [self.batch, self.down, self.blocks, -1]) for part in patches]
        lines = self._down.scatter(parts if self.apart else _split(parts[0], self.kernel[0]))
        cells = self._across.scatter(_split(lines, self.per_patch))
        x = tf.reshape(cells, [self.batch, *self.padded, self.channels])
        return _fitted(x, (-self.before[0], -self.before[1]), self.size)

    def matrices(self, kernel: Tensor) -> list[Tensor]:
        """[…, block · N] by which each of `patches` is multiplied: column block v is the kernel moved by v strides."""
        columns = self.per_patch * self.stride * self.block
        kernel = spread(kernel, 1, self.gap)
        # Filters side by side, each moved by one stride more: one product then gives `block` neighbouring outputs.
        moved = [
            pad(kernel, [[0, 0], [shift, columns - self.taps - shift], [0, 0], [0, 0]]) for shift in self._shifts()
        ]
        parts = self.kernel[0] if self.apart else 1
        whole = tf.reshape(concat(moved, 3), [parts, -1, self.block * self.kernel[3]])
        return [tf.reshape(crop(whole, slice(part, part + 1)), whole.shape[1:]) for part in range(parts)]

    def unmatrices(self, matrices: Sequence[Tensor]) -> Tensor:
        """Adjoint of `matrices`."""
        columns = self.per_patch * self.stride * self.block
        shape = [self.kernel[0], columns, self.channels, self.block * self.kernel[3]]
        whole = tf.reshape(concat(matrices, 0), shape)
        parts = zip(self._shifts(), _split(whole, self.block), strict=True)
        found = total([crop(part, ALL, slice(shift, shift + self.taps)) for shift, part in parts])
        return _gathered(found, self.gap)

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


def _fitted(x: Tensor, before: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Rows and columns moved by ``before`` (negative: cut off), and cut off or padded at their ends."""
    ranges, pads = [ALL], [[0, 0]]
    for have, size, shift in zip(x.shape[1:3], wanted, before, strict=True):
        ranges.append(slice(max(-shift, 0), min(have, size - shift)))
        pads.append([max(shift, 0), max(size - have - shift, 0)])
    return pad(crop(x, *ranges), [*pads, [0, 0]])


def _best(
    x: Sequence[int], kernel: Sequence[int], strides: Pair, dilations: Pair, before: Pair, counts: Pair
) -> _Layout:
    # Few filters want wide blocks, many want none; which is cheapest depends on all the sizes, so each is counted.
    layouts = (_Layout(x, kernel, strides, dilations, before, counts, block) for block in range(1, _MAX_BLOCK + 1))
    # Ties go to the smaller block, which is listed first.
    return min(layouts, key=lambda found: found.cost)


def _layouts(
    x: Sequence[int], kernel: Sequence[int], strides: Pair, padding: str, dilations: Pair
) -> tuple[_Layout, _Layout | None]:
    """Return how it is convolved, and how its output's gradient is, if that is cheaper than `_Layout.scatter`."""
    spans = [reach(*axis) for axis in zip(kernel[:2], dilations, strict=True)]
    axes = zip(x[1:3], spans, strides, strict=True)
    (down, top), (across, left) = (output_and_padding(*axis, padding) for axis in axes)
    layout = _best(x, kernel, strides, dilations, (top, left), (down, across))
    if strides != (1, 1):
        return layout, None
    # A pixel reaches the outputs behind it by the taps before the first, and so on.
    before, turned = (spans[0] - 1 - top, spans[1] - 1 - left), [*kernel[:2], kernel[3], kernel[2]]
    back = _best([x[0], down, across, kernel[3]], turned, strides, dilations, before, (x[1], x[2]))
    return layout, back if back.cost < layout.cost_of_adjoint else None


def convolution(
    x: Tensor, kernel: Tensor, strides: Pair, padding: str, dilations: Pair = (1, 1), *, bounded: bool = True
) -> Tensor | None:
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
    dilations
        From one tap to the next, along height and width.
    bounded
        Whether patches that would take more than ``MAX_PATCH_BYTES`` are not taken.

    Returns
    -------
    Tensor or None
        [B, H', W', N]; None if the patches would be too large.
    """
    layout, back = _layouts(x.shape, kernel.shape, strides, padding, dilations)
    # The caller falls back to LiteRT's own convolution: slower, and within the device's memory.
    if bounded and layout.patch_bytes > MAX_PATCH_BYTES:
        return None

    def convolve(x: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        patches, matrices = layout.patches(x), layout.matrices(kernel)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            rows = layout.unoutputs(dy)
            by_kernel = layout.unmatrices([transposed_product(part, rows) for part in patches])
            if back is None:
                return layout.scatter([product(rows, one, transpose_b=True) for one in matrices]), by_kernel
            return _convolved(back, dy, _turned(kernel)), by_kernel

        return layout.outputs(_summed(patches, matrices)), gradient

    found: Tensor = tf.custom_gradient(convolve)(x, kernel)
    return found


def _convolved(layout: _Layout, x: Tensor, kernel: Tensor) -> Tensor:
    return layout.outputs(_summed(layout.patches(x), layout.matrices(kernel)))


def _summed(patches: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    return total([product(part, matrix) for part, matrix in zip(patches, matrices, strict=True)])


def _turned(kernel: Tensor) -> Tensor:
    """The kernel of the adjoint at stride 1: turned by half a circle, inputs and outputs exchanged."""
    for axis in (0, 1):
        # Slices and a concatenation: XNNPACK leaves REVERSE out.
        size = kernel.shape[axis]
        kernel = concat([crop(kernel, *[ALL] * axis, slice(i, i + 1)) for i in reversed(range(size))], axis)
    return tf.transpose(kernel, [0, 1, 3, 2])


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


def spread(kernel: Tensor, axis: int, gap: int) -> Tensor:
    """Put zeros between the places of an axis of a kernel, so that they lie ``gap`` apart."""
    if gap == 1 or kernel.shape[axis] == 1:
        return kernel
    shape = list(kernel.shape)
    apart = tf.reshape(kernel, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    # Behind the last place, too: then it is a plain reshape, and what is too much is cut off.
    wide = pad(apart, [[0, gap - 1] if at == axis + 1 else [0, 0] for at in range(len(shape) + 1)])
    wide = tf.reshape(wide, [*shape[:axis], shape[axis] * gap, *shape[axis + 1 :]])
    return crop(wide, *[ALL] * axis, slice(reach(shape[axis], gap)))


def _gathered(kernel: Tensor, gap: int) -> Tensor:
    """Adjoint of `spread` along the second axis."""
    if gap == 1:
        return kernel
    rows, columns, *rest = kernel.shape
    count = (columns - 1) // gap + 1
    whole = pad(kernel, [[0, 0], [0, count * gap - columns], [0, 0], [0, 0]])
    apart = tf.reshape(whole, [rows, count, gap, *rest])
    return tf.reshape(crop(apart, ALL, ALL, slice(1)), [rows, count, *rest])


_tf_bias_add, _tf_relu = tf.nn.bias_add, tf.nn.relu


def _split(x: Tensor, parts: int) -> list[Tensor]:
    size = x.shape[-1] // parts
    before = [ALL] * (x.shape.rank - 1)
    return [crop(x, *before, slice(i * size, (i + 1) * size)) for i in range(parts)]


def total(parts: Sequence[Tensor]) -> Tensor:
    """Sum tensors of one shape."""
    return functools.reduce(lambda found, part: found + part, parts)
