"""Weights of classes in training, as Keras' ``class_weight`` has them: an example's loss is times the weight of its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.engines.base import Batch, Dataset
from fedgrass.engines.metrics import BINARY, CLASSIFIERS
from fedgrass.errors import ConfigurationError
from fedgrass.tensors import Array

ClassWeight = Literal["balanced"] | Mapping[str, float] | None


def weighted(data: Dataset, class_weight: ClassWeight, manifest: Manifest) -> Dataset:
    """Return the data with a weight for each example.

    Parameters
    ----------
    data
        Examples that fit the model.
    class_weight
        ``balanced``: n / (k × n_c) for a class that n_c of the n examples have, of the k classes that occur, as scikit-learn
        has it. Or weights by class, called by its name or its number; other classes have 1. None leaves the data as they are.

    Raises
    ------
    ConfigurationError
        If the model has not one class for each example, or there is no such class.
    """
    if not class_weight:
        return data
    count = _class_count(manifest)
    # Counted on this device: each balances its own classes.
    if class_weight == "balanced":
        return _Weighted(data, _balanced(data, manifest, count), manifest)
    weights = np.ones(count, np.float32)
    for key, value in dict(class_weight).items():
        weights[_index(key, manifest, count)] = value
    return _Weighted(data, weights, manifest)


class _Weighted:
    def __init__(self, data: Dataset, weights: Array, manifest: Manifest) -> None:
        self._data, self._weights, self._manifest = data, weights, manifest

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        for batch in self._data.batches(batch_size, seed=seed):
            weights = self._weights[_classes(batch.y, self._manifest)]
            # An example's own weight and its class's multiply, as in Keras.
            yield replace(batch, weights=weights if batch.weights is None else weights * batch.weights)


def _class_count(manifest: Manifest) -> int:
    """Return how many classes an example has one of; raises `ConfigurationError` if it has not one."""
    if manifest.outputs:
        raise ConfigurationError(
            f"fit.class_weight: model {manifest.name!r} has several outputs, of which each has classes of its own; set it to "
            "null, and give examples a sample_weight"
        )
    if manifest.loss in CLASSIFIERS:
        if manifest.loss == "sparse_categorical_crossentropy" and manifest.y.shape in ((), (1,)):
            return manifest.output.shape[-1]
        if manifest.loss in BINARY and manifest.y.size == 1:
            return 2
        if manifest.loss.startswith("categorical") and len(manifest.y.shape) == 1:
            return manifest.output.shape[-1]
    raise ConfigurationError(
        f"fit.class_weight: model {manifest.name!r} (loss {manifest.loss}, y {list(manifest.y.shape)}) has not one class for "
        "each example; set it to null"
    )


def _index(key: str, manifest: Manifest, count: int) -> int:
    names = manifest.class_names if len(manifest.class_names) == count else ()
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < count:
        return int(key)
    known = ", ".join(names[:20]) if names else f"0 to {count - 1}"
    raise ConfigurationError(f"fit.class_weight: model {manifest.name!r} has no class {key!r}; it has {known}")


def _classes(y: Array, manifest: Manifest) -> Array:
    if manifest.loss.startswith("categorical"):
        return np.asarray(y.argmax(axis=-1))
    y = y.reshape(len(y))
    return np.asarray(y > 0.5, np.int64) if manifest.loss in BINARY else y


def _balanced(data: Dataset, manifest: Manifest, count: int) -> Array:
    counts = np.zeros(count, np.int64)
    for batch in data.batches(manifest.batch_size):
        counts += np.bincount(_classes(batch.y, manifest), minlength=count)
    # A class that does not occur has no weight to give, and would divide by zero.
    occurring = counts > 0
    weights = np.ones(count, np.float32)
    weights[occurring] = counts.sum() / (occurring.sum() * counts[occurring])
    return weights
