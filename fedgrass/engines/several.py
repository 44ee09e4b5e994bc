"""Several arrays of each example in one row of float32 values, as `fedgrass.interface` has it, and apart again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedgrass.bundle import Head, Loss, Manifest, TensorDescription
from fedgrass.engines.metrics import BINARY, CLASSIFIERS, losses, sigmoid, softmax
from fedgrass.errors import DataError, EngineError
from fedgrass.tensors import Array

EXACT_BELOW = 1 << 24
"""Whole numbers that float32 holds exactly."""


def spans(parts: Sequence[TensorDescription]) -> Iterator[slice]:
    """Yield where each part lies in a row."""
    ends = list(itertools.accumulate((part.size for part in parts), initial=0))
    yield from itertools.starmap(slice, itertools.pairwise(ends))


def apart(rows: Array, parts: Sequence[TensorDescription]) -> list[Array]:
    """Return the arrays [n, *shape] that rows [n, values] are made of.

    Examples
    --------
    >>> parts = [TensorDescription(name=n, shape=(2,), dtype="float32") for n in "ab"]
    >>> [part.tolist() for part in apart(np.array([[1.0, 2.0, 3.0, 4.0]]), parts)]
    [[[1.0, 2.0]], [[3.0, 4.0]]]
    """
    return [
        rows[:, span].reshape(len(rows), *part.shape).astype(part.dtype)
        for span, part in zip(spans(parts), parts, strict=True)
    ]


def joined(arrays: Mapping[str, Array], parts: Sequence[TensorDescription]) -> Array:
    """Return arrays, by name, as rows [n, values].

    Raises
    ------
    DataError
        If one is missing, has another shape or kind of dtype than its part, another number of examples than the first, or whole
        numbers that a row does not hold.
    """
    found = [_checked(arrays, part) for part in parts]
    for array, part in zip(found, parts, strict=True):
        if len(array) != len(found[0]):
            raise DataError(f"{part.name!r} has {len(array)} examples and {parts[0].name!r} {len(found[0])}")
    return np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in found], axis=1)


def _checked(arrays: Mapping[str, Array], part: TensorDescription) -> Array:
    if part.name not in arrays:
        raise DataError(f"lacks array {part.name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    array = arrays[part.name]
    # One value per example may come as [n] or [n, 1]; both mean the same row.
    if array.shape[1:] != part.shape and not (part.size == 1 and array.shape[1:] in ((), (1,))):
        raise DataError(
            f"{part.name!r} has shape {list(array.shape[1:])} for an example, the model takes {list(part.shape)}"
        )
    wanted = np.dtype(part.dtype)
    # Integers may become floats; floats would lose their fraction as integers.
    if array.dtype.kind not in ("iub" if wanted.kind in "iub" else "fiub"):
        raise DataError(f"{part.name!r} has dtype {array.dtype}, the model takes {part.dtype}; convert it")
    if wanted.kind in "iu":
        info = np.iinfo(wanted)
        # A row is float32, so a token id beyond 2**24 would become its neighbour.
        low, high = max(info.min, -EXACT_BELOW), min(info.max, EXACT_BELOW)
        if array.size and (array.min() < low or array.max() > high):
            raise DataError(f"{part.name!r} has values from {array.min()} to {array.max()}; {low} to {high} can be")
    return array


def given(rows: Array, heads: Sequence[Head]) -> list[Array]:
    """Return what several outputs gave [n, *shape], from all in a row as their losses take them: logits become probabilities."""
    found = apart(rows, [head.output for head in heads])
    return [_probabilities(head.loss, output) for head, output in zip(heads, found, strict=True)]


def _probabilities(loss: Loss, logits: Array) -> Array:
    if loss not in CLASSIFIERS:
        return logits
    return sigmoid(logits) if loss in BINARY else softmax(logits)


def labels(rows: Array, heads: Sequence[Head]) -> list[Array]:
    """Return each output's labels [n, *shape], from all in a row."""
    return [rows] if len(heads) == 1 else apart(rows, [head.y for head in heads])


def total_loss(rows: Array, y: Array, heads: Sequence[Head]) -> float:
    """Return the weighted sum of several outputs' losses, summed over the examples; ``rows`` are as `given` takes them.

    Parameters
    ----------
    rows
        float32 [n, values]: what the model gives, in a row for each example.
    y
        float32 [n, values]: the labels, in a row.
    heads
        The outputs, in their order.
    """
    each = zip(heads, given(rows, heads), labels(y, heads), strict=True)
    return sum(head.weight * float(losses(head.loss, out, true, head.loss_options).sum()) for head, out, true in each)


def require_one_of_each(manifest: Manifest, engine: str) -> None:
    """Raise `EngineError` for a model of several inputs or outputs, which this engine does not train."""
    if manifest.inputs or manifest.outputs:
        raise EngineError(
            f"engine {engine}: model {manifest.name!r} has several inputs or outputs; set 'engine' to litert, which trains such"
        )
