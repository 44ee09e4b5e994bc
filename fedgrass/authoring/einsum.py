"""Sums of products by Einstein's notation, as matrix products: LiteRT lacks EINSUM, which attention is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.broadcasts import total
from fedgrass.authoring.convolution import product
from fedgrass.authoring.errors import UnsupportedModelError

Tensor: TypeAlias = tf.Tensor

_tf_einsum = tf.einsum


def einsum(equation: str, *operands: Tensor, **options: object) -> Tensor:
    """Stand for ``tf.einsum``.

    Parameters
    ----------
    equation
        Such as ``BTNH,BSNH->BNTS``; with ``...``, and without ``->``, as NumPy has it.
    operands
        Tensors; any whose shape is not all known are left to TensorFlow.
    options
        Of TensorFlow's own; how to order the products is not looked at.

    Raises
    ------
    UnsupportedModelError
        For a diagonal (``ii->i``).
    """
    tensors = [tf.convert_to_tensor(x) for x in operands]
    if any(None in x.shape for x in tensors):
        return _tf_einsum(equation, *operands, **options)
    labels, wanted = _parsed(equation, [x.shape.rank for x in tensors])
    for term in (*labels, wanted):
        if len(set(term)) != len(term):
            raise UnsupportedModelError(
                "the model", f"einsum {equation!r}, a diagonal,", "multiply by an identity matrix"
            )
    sizes: dict[str, int] = {}
    for term, x in zip(labels, tensors, strict=True):
        for label, n in zip(term, x.shape, strict=True):
            sizes[label] = max(int(n), sizes.get(label, 1))
    # An axis of 1 where another operand's has more is repeated; without it the product does just that.
    for place, (term, x) in enumerate(zip(labels, tensors, strict=True)):
        rest = [axis for axis, label in enumerate(term) if x.shape[axis] == sizes[label]]
        if len(rest) < len(term):
            tensors[place] = tf.reshape(x, [x.shape[axis] for axis in rest])
            labels[place] = "".join(term[axis] for axis in rest)
    found, term = tensors[0], labels[0]
    for place in range(1, len(tensors)):
        # What neither a later operand nor the result has is summed here.
        kept = set(wanted).union(*labels[place + 1 :])
        found, term = _multiplied(found, term, tensors[place], labels[place], kept, sizes)
    found, term = _summed(found, term, set(wanted))
    return _ordered(found, term, wanted)


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return each operand's labels and the result's, with letters of their own for the axes of ``...``."""
    left, arrow, wanted = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = iter(chr(code) for code in range(0x3B1, 0x3B1 + 24))
    wide = max((rank - len(term) + 3 for rank, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    axes = "".join(next(free) for _ in range(wide))
    expanded = [
        term.replace("...", axes[wide - (rank - len(term) + 3) :]) for rank, term in zip(ranks, terms, strict=True)
    ]
    if not arrow:
        every = "".join(expanded)
        wanted = axes + "".join(sorted(label for label in set(every) if every.count(label) == 1 and label not in axes))
    return expanded, wanted.replace("...", axes)


def _multiplied(
    a: Tensor, of_a: str, b: Tensor, of_b: str, kept: set[str], sizes: Mapping[str, int]
) -> tuple[Tensor, str]:
    a, of_a = _summed(a, of_a, kept | set(of_b))
    b, of_b = _summed(b, of_b, kept | set(of_a))
    shared = [label for label in of_a if label in of_b]
    batch = "".join(label for label in shared if label in kept)
    inner = "".join(label for label in shared if label not in kept)
    rows = "".join(label for label in of_a if label not in of_b)
    columns = "".join(label for label in of_b if label not in of_a)
    # A product takes its right operand transposed as it is: that spares a transposition.
    transposed = "".join(label for label in of_b if label not in batch) == columns + inner
    count, m, k, n = (math.prod(sizes[label] for label in part) for part in (batch, rows, inner, columns))
    left = tf.reshape(_ordered(a, of_a, batch + rows + inner), [count, m, k])
    right = _ordered(b, of_b, batch + (columns + inner if transposed else inner + columns))
    right = tf.reshape(right, [count, n, k] if transposed else [count, k, n])
    multiply = tf.matmul if count > 1 else _one_product
    found = multiply(left, right, transpose_b=transposed)
    term = batch + rows + columns
    return tf.reshape(found, [sizes[label] for label in term]), term


def _one_product(left: Tensor, right: Tensor, *, transpose_b: bool) -> Tensor:
    return product(left[0], right[0], transpose_b=transpose_b)


def _summed(x: Tensor, term: str, kept: set[str]) -> tuple[Tensor, str]:
    axes = [axis for axis, label in enumerate(term) if label not in kept]
    rest = "".join(label for label in term if label in kept)
    if not axes:
        return x, term
    return tf.reshape(total(x, axes), [n for axis, n in enumerate(x.shape) if axis not in axes]), rest


def _ordered(x: Tensor, term: str, wanted: str) -> Tensor:
    return x if term == wanted else tf.transpose(x, [term.index(label) for label in wanted])
