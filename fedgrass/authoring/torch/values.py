"""Tensors whose axes may lie in another order in memory than PyTorch numbers them.

PyTorch's images are [N, C, H, W], LiteRT's operators want [N, H, W, C]. Transposing at each operator would cost more than
many of them do, so the order is followed: what works on each element keeps it, ``permute`` changes only what is noted of it, and
a tensor is transposed when an operator needs another order than it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Tensor: TypeAlias = tf.Tensor
Order = tuple[int, ...]


class Value:
    """A tensor of the graph: axis i of ``tensor`` is axis ``order[i]`` to PyTorch."""

    def __init__(self, tensor: Tensor, order: Sequence[int] | None = None) -> None:
        self.tensor = tensor
        self.order: Order = tuple(range(tensor.shape.rank)) if order is None else tuple(order)
        self._made: dict[Order, Tensor] = {self.order: tensor}

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch sees it."""
        sizes = [0] * len(self.order)
        for size, axis in zip(self.tensor.shape, self.order, strict=True):
            sizes[axis] = int(size)
        return tuple(sizes)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.order)

    @property
    def is_float(self) -> bool:
        """Whether it holds float32."""
        return bool(self.tensor.dtype.is_floating)

    def laid(self, order: Sequence[int]) -> Tensor:
        """Return the tensor in this order; transposed at most once for each."""
        order = tuple(order)
        if order not in self._made:
            axes = [self.order.index(axis) for axis in order]
            shape = self.shape
            moving = [axis for axis in axes if self.tensor.shape[axis] != 1]
            if moving == sorted(moving):  # only axes of one element move: nothing does
                self._made[order] = tf.reshape(self.tensor, [shape[axis] for axis in order])
            else:
                self._made[order] = tf.transpose(self.tensor, axes)
        return self._made[order]

    @property
    def plain(self) -> Tensor:
        """The tensor in PyTorch's order."""
        return self.laid(range(self.rank))

    def like(self, tensor: Tensor) -> Value:
        """Return another tensor that lies as this one does."""
        return Value(tensor, self.order)

    def axis(self, axis: int) -> int:
        """Where PyTorch's axis lies."""
        return self.order.index(axis % self.rank)

    def axes(self, axes: Iterable[int]) -> list[int]:
        """Where PyTorch's axes lie."""
        return [self.axis(axis) for axis in axes]


def permute(x: Value, axes: Sequence[int]) -> Value:
    """Renumber the axes; no data move."""
    before = [axis % x.rank for axis in axes]
    return Value(x.tensor, [before.index(axis) for axis in x.order])


def reshape(x: Value, shape: Sequence[int]) -> Value:
    """Give PyTorch's reshape, in the order that x has if the axes that are joined lie side by side in it."""
    sizes = _resolved(x.shape, shape)
    if sizes == x.shape:
        return x
    groups = _groups(x.shape, sizes)
    owner = {axis: i for i, (old, _) in enumerate(groups) for axis in old}
    walk = [axis for axis in x.order if x.shape[axis] != 1]
    sequence = list(dict.fromkeys(owner[axis] for axis in walk))
    # Joined axes that do not lie side by side have to be brought into PyTorch's order first.
    if walk != [axis for i in sequence for axis in groups[i][0] if x.shape[axis] != 1]:
        return Value(tf.reshape(x.plain, sizes))
    rest = [i for i in range(len(groups)) if i not in sequence]
    order = [axis for i in [*sequence, *rest] for axis in groups[i][1]]
    return Value(tf.reshape(x.tensor, [sizes[axis] for axis in order]), order)


def together(values: Sequence[Value]) -> tuple[list[Tensor], Order]:
    """Tensors that can be combined element by element, in the order of the largest."""
    rank = max(value.rank for value in values)
    # Ties go to the first; only the largest is spared a transpose.
    lead = max((value for value in values if value.rank == rank), key=lambda value: math.prod(value.shape))
    found = []
    for value in values:
        if value.rank == 0:
            found.append(value.tensor)
            continue
        full = value if value.rank == rank else reshape(value, [1] * (rank - value.rank) + list(value.shape))
        found.append(full.laid(lead.order))
    return found, lead.order


def constant(array: NDArray[np.generic]) -> Value:
    """Return what PyTorch knew when it was traced: whole numbers as int32, others as float32."""
    kinds = {"f": np.float32, "i": np.int32, "u": np.int32, "b": np.bool_}
    if array.dtype.kind == "i" and array.size:
        limits = np.iinfo(np.int32)
        # int64 bounds such as "no limit" become int32's: shapes never reach them.
        array = np.clip(array, limits.min, limits.max)
    return Value(tf.constant(array.astype(kinds[array.dtype.kind])))


def _resolved(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    known = math.prod(size for size in new if size != -1)
    return tuple(math.prod(old) // max(known, 1) if size == -1 else int(size) for size in new)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The fewest neighbouring axes, before and after, that hold the same elements."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        # Axes are taken from both sides until their products agree: that is the smallest group.
        have, want = 1, 1
        while (i < len(old) or j < len(new)) and (have != want or not (left or right)):
            if j >= len(new) or (i < len(old) and have <= want):
                have *= old[i]
                left.append(i)
                i += 1
            else:
                want *= new[j]
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups
