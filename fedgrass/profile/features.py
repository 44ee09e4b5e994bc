"""Which features a model's examples have, and which labels."""

from __future__ import annotations

import numpy as np

from fedgrass.bundle import Head, Manifest, TensorDescription
from fedgrass.engines.base import Batch, Dataset
from fedgrass.engines.metrics import CLASSIFIERS
from fedgrass.engines.several import labels
from fedgrass.errors import DataError
from fedgrass.profile.sums import Bounds, FeatureSums
from fedgrass.protocol.profile import MOST_FEATURES, MOST_LABELS, Profile, StatisticsTask
from fedgrass.tensors import Array

_VALUES = 1 << 18
"""Values of x that are in double precision at once."""
_CELLS = 1 << 20
"""Most bins of all features together."""
_TRUE = 0.5


def feature_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the features of x by name: each of its values, or beyond `MOST_FEATURES` each place of its last axis.

    Columns have the names that the bundle gives them; other values are called by their place.
    """
    if manifest.x.size > MOST_FEATURES:
        return tuple(f"x[…,{place}]" for place in range(_last(manifest)))
    # Names must tell features apart: columns that are named twice are called by their place.
    if manifest.data.columns and len(set(manifest.data.columns)) == len(manifest.data.columns):
        return manifest.data.columns
    if manifest.inputs:
        return tuple(f"{part.name}[{place}]" for part in manifest.inputs for place in range(part.size))
    places = np.ndindex(*manifest.x.shape)
    return tuple(f"x[{','.join(map(str, place))}]" for place in places)


def _last(manifest: Manifest) -> int:
    # For images and series, whose last axis is channels; where even that is too long, all values are one feature.
    last = manifest.x.shape[-1] if manifest.x.shape else 1
    return last if last <= MOST_FEATURES else 1


def label_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the labels that are counted: those of the first output that has classes; () if none has."""
    head = _labelled(manifest)
    if head is None:
        return ()
    sparse = head.loss == "sparse_categorical_crossentropy"
    count = head.output.shape[-1] if sparse else head.y.size
    # One output with a sigmoid: the label is there or not, which makes two classes.
    if not sparse and head.y.size == 1:
        count = 2
    if count > MOST_LABELS:
        return ()
    return head.class_names if len(head.class_names) == count else tuple(map(str, range(count)))


def measured(
    data: Dataset, manifest: Manifest, bounds: Bounds | None = None, *, inputs_alone: bool = False
) -> FeatureSums:
    """Return the sums over a device's examples, read batch by batch in bounded memory.

    Parameters
    ----------
    data
        x [n, …] and y [n, …]; values of x may be missing (NaN).
    manifest
        Of the model whose inputs they are.
    bounds
        Of the histograms.
    inputs_alone
        Whether y is not looked at: of live data it may not be known.

    Raises
    ------
    DataError
        If there are no examples, or they are of another shape or kind than the model's.
    """
    features = len(feature_names(manifest))
    sums = FeatureSums(features, 0 if inputs_alone else len(label_names(manifest)), bounds)
    for batch in data.batches(at_once(manifest)):
        check_inputs(batch, manifest)
        sums.add(np.reshape(batch.x, (-1, features)), len(batch.x))
        if not inputs_alone:
            sums.labels += label_counts(batch, manifest, len(sums.labels))
    if not sums.examples:
        raise DataError(f"no examples for model {manifest.name!r}; check the data loader's path and filters")
    return sums


def bounds_of(task: StatisticsTask, manifest: Manifest, earlier: Profile | None) -> Bounds | None:
    """Return the bounds of a round's histograms; None if it has none.

    There are fewer bins than the task says if the features are so many that memory would be short.

    Parameters
    ----------
    task
        What the round asks for.
    manifest
        Of the model whose inputs are described.
    earlier
        The profile that the task names: what it found is where histograms begin and end.
    """
    names = feature_names(manifest)
    # Two more places in each histogram are for what lies outside of the bounds.
    bins = max(2, min(task.bins, _CELLS // len(names) - 2))
    if task.low is not None and task.high is not None:
        return Bounds(np.full(len(names), task.low), np.full(len(names), task.high), bins, held=True)
    # A profile of other inputs has bounds that mean nothing here.
    if earlier is None or tuple(feature.name for feature in earlier.features) != names:
        return None
    # One with noise tells no minimum: its own bounds go on.
    ends = [
        (f.low, f.high) if f.low is not None and f.high is not None else f.bounds or (0.0, 0.0)
        for f in earlier.features
    ]
    low, high = np.array(ends, np.float64).T
    return Bounds(low, high, bins)


def at_once(manifest: Manifest) -> int:
    """Return how many examples are in double precision at once: by the number of values, for one example may be large."""
    return max(1, _VALUES // max(1, manifest.x.size))


def check_inputs(batch: Batch, manifest: Manifest) -> None:
    """Raise `DataError` if x is not what the model takes."""
    _check(batch.x, manifest.x)


def label_counts(batch: Batch, manifest: Manifest, count: int) -> Array:
    """Return how many examples [count] of a batch have each label; raises `DataError` if y is not the model's."""
    _check(batch.y, manifest.y)
    if not count or (head := _labelled(manifest)) is None:
        return np.zeros(count)
    return _counted(labels(batch.y, manifest.heads)[list(manifest.heads).index(head)], head, count)


def one_label(manifest: Manifest) -> bool:
    """Whether an example has one label, and not any number of several."""
    head = _labelled(manifest)
    return head is not None and (head.loss == "sparse_categorical_crossentropy" or head.y.size == 1)


def _labelled(manifest: Manifest) -> Head | None:
    """Return the first output whose labels are classes, one or several of an example."""
    for head in manifest.heads:
        if head.loss == "sparse_categorical_crossentropy" and head.y.size == 1:
            return head
        if head.loss in CLASSIFIERS and len(head.y.shape) <= 1 and head.loss != "sparse_categorical_crossentropy":
            return head
    return None


def _counted(y: Array, head: Head, count: int) -> Array:
    if head.loss == "sparse_categorical_crossentropy" or head.y.size == 1:
        # A sigmoid's label is 0 or 1, or a probability.
        found = np.rint(np.reshape(y, len(y))).astype(np.int64)
        if len(found) and not 0 <= found.min() <= found.max() < count:
            raise DataError(f"{head.y.name}: label {found.min()} to {found.max()}; the model takes 0 to {count - 1}")
        counts: Array = np.bincount(found, minlength=count)
        return counts
    true: Array = (np.reshape(y, (len(y), count)) > _TRUE).sum(axis=0)
    return true


def _check(array: Array, wanted: TensorDescription) -> None:
    if array.shape[1:] != wanted.shape:
        raise DataError(f"{wanted.name}: shape {list(array.shape[1:])}, the model takes {list(wanted.shape)}")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{wanted.name}: dtype {array.dtype}, the model takes {wanted.dtype}")
