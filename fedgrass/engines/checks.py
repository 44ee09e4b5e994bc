"""Training data held against what a model expects, before any step is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from fedgrass.bundle import Head, Manifest, TensorDescription
from fedgrass.engines.base import Batch, Dataset
from fedgrass.engines.metrics import CLASSIFIERS
from fedgrass.engines.several import apart, labels
from fedgrass.errors import DataError
from fedgrass.tensors import Array


def check_dataset(data: Dataset, manifest: Manifest) -> None:
    """Read all the data once and check every batch.

    Raises
    ------
    DataError
        If there are no examples, or as in `check_batch`; the message says which example.
    """
    # Reading all of the data twice would double the time of a simulated device's round.
    if isinstance(data, Checked) and len(data):
        return
    first, origin = 0, origin_in(data)
    for batch in data.batches(manifest.batch_size):
        check_batch(batch, manifest, first=first, origin=origin)
        first += len(batch.x)
    if first == 0:
        raise DataError(f"no examples for model {manifest.name!r}; check the data loader's path and filters")


class Checked:
    """Examples that passed `check_dataset` as part of a larger set: a simulation checks all devices' at once."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        return self._data.batches(batch_size, seed=seed)


def origin_in(data: Dataset) -> Callable[[int], int]:
    """Return what tells an example's number in the file from its place in a part of the data, which are shuffled."""
    found: Callable[[int], int] = getattr(data, "origin", _same)
    return found


def _same(number: int) -> int:
    return number


def check_batch(batch: Batch, manifest: Manifest, *, first: int = 0, origin: Callable[[int], int] = _same) -> None:
    """Check one batch against the model.

    Parameters
    ----------
    batch
        x [b, …] and y [b, …].
    manifest
        Of the model.
    first
        The place of the batch's first example in the data.
    origin
        Tells, for messages, an example's number from its place.

    Raises
    ------
    DataError
        If x and y differ in length, exceed the batch size, or have another shape or kind of dtype than the model; if a
        value is not finite, is beyond the model's dtype, or a label is out of range.
    """
    if len(batch.x) != len(batch.y):
        raise DataError(f"examples from {first}: {len(batch.x)} rows of x but {len(batch.y)} of y")
    if len(batch.x) > manifest.batch_size:
        raise DataError(
            f"examples from {first}: a batch of {len(batch.x)}; at most {manifest.batch_size} were asked for"
        )
    if batch.weights is not None:
        _check_weights(batch, lambda row: origin(first + row))
    for array, description in ((batch.x, manifest.x), (batch.y, manifest.y)):
        _check_array(array, description, lambda row: origin(first + row))
    _check_tokens(batch.x, manifest, lambda row: origin(first + row))
    for head, y in zip(manifest.heads, labels(batch.y, manifest.heads), strict=True):
        # To ONE_HOT a label beyond the classes is a row of zeros: it would silently train on nothing.
        low, high = _label_range(head)
        outside = (y < low) | (y > high)
        if outside.any():
            row, value = _first_where(outside, y)
            raise DataError(
                f"{head.y.name} of example {origin(first + row)}: label {value} is out of range, model {manifest.name!r} takes "
                f"{low} to {high}"
            )


def _check_weights(batch: Batch, number: Callable[[int], int]) -> None:
    weights = np.asarray(batch.weights)
    if weights.shape != (len(batch.x),) or weights.dtype.kind not in "fiub":
        raise DataError(
            f"sample_weight from example {number(0)}: {weights.dtype}{list(weights.shape)}, expected a number for each example"
        )
    # Above the float32 numbers lies what would be infinite in the graph.
    # Written so that NaN, which compares as false, is wrong too.
    wrong = ~((weights >= 0) & (weights <= np.finfo(np.float32).max))
    if wrong.any():
        row, value = _first_where(wrong, weights)
        raise DataError(
            f"sample_weight of example {number(row)}: {value} is not a weight, which is a finite number from 0 up"
        )


def _check_tokens(x: Array, manifest: Manifest, origin: Callable[[int], int]) -> None:
    arrays = zip(manifest.inputs, apart(x, manifest.inputs), strict=True) if manifest.inputs else [(manifest.x, x)]
    sizes = manifest.vocabularies if manifest.inputs else {manifest.x.name: manifest.vocabulary}
    for part, array in arrays:
        if (size := sizes.get(part.name)) is None:
            continue
        # An embedding has no row for it, and what its kernel does then tells a user nothing.
        beyond = (array < 0) | (array >= size)
        if beyond.any():
            row, value = _first_where(beyond, array)
            raise DataError(
                f"{part.name} of example {origin(row)}: token {value} is not in the vocabulary of model {manifest.name!r}, "
                f"0 to {size - 1}; map unknown tokens in the data loader"
            )


def _check_array(array: Array, expected: TensorDescription, number: Callable[[int], int]) -> None:
    wanted = np.dtype(expected.dtype)
    if array.shape[1:] != expected.shape:
        raise DataError(
            f"{expected.name} of example {number(0)}: shape {list(array.shape[1:])}, the model takes {list(expected.shape)}"
        )
    # Integers for floats are most often pixels from 0 to 255 that nobody scaled: refused rather than trained on.
    if _kind(array.dtype) != _kind(wanted):
        raise DataError(
            f"{expected.name} of example {number(0)}: dtype {array.dtype}, the model takes {expected.dtype}; "
            "convert (and scale) it in the data loader"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row, value = _first_where(~np.isfinite(array), array)
        raise DataError(f"{expected.name} of example {number(row)}: value {value} is not finite")
    # A cast to a narrower type would wrap integers around and turn large floats into infinity.
    if array.dtype != wanted and wanted.kind in "iuf":
        info = np.finfo(wanted) if wanted.kind == "f" else np.iinfo(wanted)
        beyond = (array < info.min) | (array > info.max)
        if beyond.any():
            row, value = _first_where(beyond, array)
            raise DataError(
                f"{expected.name} of example {number(row)}: value {value} is beyond {expected.dtype}, which the model takes and "
                f"which holds {info.min} to {info.max}"
            )


def _kind(dtype: np.dtype[np.generic]) -> str:
    return "i" if dtype.kind in "iu" else dtype.kind


def _label_range(head: Head) -> tuple[float, float]:
    if head.loss == "sparse_categorical_crossentropy":
        return 0, head.output.shape[-1] - 1
    if head.loss in CLASSIFIERS:
        return 0, 1
    return _RANGES.get(head.loss, (-math.inf, math.inf))


# Outside of these the loss has no value, or its gradient points the wrong way.
_RANGES: dict[str, tuple[float, float]] = {
    "poisson": (0, math.inf),
    "mean_squared_logarithmic_error": (-1, math.inf),
    "kl_divergence": (0, 1),
    "hinge": (-1, 1),
    "squared_hinge": (-1, 1),
    "categorical_hinge": (0, 1),
}


def _first_where(mask: Array, array: Array) -> tuple[int, object]:
    position = tuple(int(index[0]) for index in np.nonzero(mask))
    return position[0], array[position]
