"""Data of models with several inputs or outputs: arrays by name, and labels of which each column is some output's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedgrass.bundle import Head, Manifest
from fedgrass.data.labels import Doubles, Labels, WrongLabelError
from fedgrass.engines.several import apart, joined, spans
from fedgrass.errors import DataError
from fedgrass.tensors import Array


def labels_of(manifest: Manifest) -> Labels:
    """Return how labels become a model's y."""
    return SeveralLabels(manifest) if manifest.outputs else Labels(manifest)


def arrays_of(arrays: Mapping[str, Array], manifest: Manifest) -> tuple[Array, Array]:
    """Return x and y from arrays by name: those of several inputs or outputs by theirs, of one as ``x`` or ``y``.

    Raises
    ------
    DataError
        If an array is missing, or does not fit; the message names it.
    """
    x = joined(arrays, manifest.inputs) if manifest.inputs else _named(arrays, "x")
    if not manifest.outputs:
        return x, Labels(manifest).of_array(_named(arrays, "y"))
    read = {head.name: _labels(head, manifest).of_array(_named(arrays, head.name)) for head in manifest.outputs}
    return x, joined(read, [head.y for head in manifest.outputs])


def _named(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise DataError(f"lacks array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    return arrays[name]


def _labels(head: Head, manifest: Manifest) -> Labels:
    # Each output is read by the rules for a model that has only this one.
    one = {"y": head.y, "output": head.output, "loss": head.loss, "class_names": head.class_names}
    return Labels(manifest.model_copy(update={**one, "inputs": (), "outputs": ()}))


class SeveralLabels(Labels):
    """Labels of several outputs side by side: each output's by its own classes."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest.model_copy(update={"class_names": ()}))
        self._heads = [_labels(head, manifest) for head in manifest.outputs]
        self._parts = [head.y for head in manifest.outputs]

    @property
    def are_texts(self) -> bool:
        """Whether some output's labels are class names that are not numbers."""
        return any(labels.are_texts for labels in self._heads)

    @property
    def is_whole(self) -> bool:
        """None of y's columns holds a class for all outputs."""
        return False

    @property
    def fits_one(self) -> bool:
        """One label is not enough."""
        return False

    def maps(self, columns: int) -> bool:  # noqa: ARG002 - as of one output
        """Whether cells name classes: each column has its own way."""
        return False

    def of_column(self, column: int) -> Labels:
        """Return the labels of one of y's columns."""
        return next(
            labels
            for labels, span in zip(self._heads, spans(self._parts), strict=True)
            if span.start <= column < span.stop
        )

    def of_columns(self, values: Doubles) -> Doubles:
        """Return what stands in the label columns [n, columns] as classes or values; raises as `Labels.of_numbers`."""
        columns = zip(self._heads, spans(self._parts), strict=True)
        return np.concatenate([_read(labels, values, span) for labels, span in columns], axis=1)

    def y(self, labels: Array) -> Array:
        """Return y [n, values] from the labels [n, columns]."""
        return np.asarray(labels, np.float32)


def of_first_class(y: Array, manifest: Manifest) -> Array:
    """Return the labels by which examples are dealt out: of several outputs those of the first that has classes.

    Without such an output they are all 0.
    """
    if not manifest.outputs:
        return y
    for head, labels in zip(manifest.outputs, apart(y, [head.y for head in manifest.outputs]), strict=True):
        if head.y.dtype == "int32" and head.y.size == 1:
            return labels.reshape(len(y))
    return np.zeros(len(y), np.int32)


def _read(labels: Labels, values: Doubles, span: slice) -> Doubles:
    try:
        return labels.of_columns(values[:, span])
    except WrongLabelError as error:
        row, column = divmod(error.at, span.stop - span.start)
        # From the place within this output's columns to the place among all.
        error.at = row * values.shape[1] + span.start + column
        raise
