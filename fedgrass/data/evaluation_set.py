"""Examples of which some may be known to be anomalies: what judges a model that reconstructs its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import ArrayDataset, Indices
from fedgrass.data.loaders import load_npz
from fedgrass.engines.base import Batch
from fedgrass.errors import DataError
from fedgrass.tensors import Array

MAX_EVALUATION_BYTES = 1 << 30


class EvaluationSet(ArrayDataset):
    """The operator's examples; ``anomaly`` [n] says which are none of the normal ones, where that is known."""

    def __init__(self, x: Array, y: Array, anomaly: Array | None = None) -> None:
        super().__init__(x, y)
        self.anomaly = None if anomaly is None else _marks(anomaly, len(x))

    def read(self, indices: Indices) -> Batch:
        """Return these examples; see `fedgrass.data.arrays.Source`."""
        batch = super().read(indices)
        return batch if self.anomaly is None else replace(batch, anomaly=self.anomaly.take(indices))

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        # Shuffled batches are for training, which does not look at `anomaly`.
        if self.anomaly is None or seed is not None:
            yield from super().batches(batch_size, seed=seed)
            return
        for start in range(0, len(self), batch_size):
            yield self.read(np.arange(start, min(start + batch_size, len(self))))


def _marks(anomaly: Array, examples: int) -> Array:
    """Return which examples are anomalies, as bool [n]."""
    if anomaly.shape not in ((examples,), (examples, 1)) or anomaly.dtype.kind not in "biuf":
        raise DataError(
            f"evaluation set: anomaly is {anomaly.dtype}{list(anomaly.shape)}; expected {examples} times 0 or 1"
        )
    wrong = ~np.isin(anomaly, (0, 1))
    if wrong.any():
        # -1 and 1 above all: to scikit-learn's detectors 1 is a normal example.
        raise DataError(
            f"evaluation set: anomaly {np.unique(anomaly[wrong])[0]} is neither 0 nor 1, which is an anomaly; of scikit-learn's "
            "-1 and 1 write `anomaly == -1`"
        )
    return anomaly.reshape(examples).astype(bool)


def read_evaluation_set(path: Path, manifest: Manifest | None = None) -> EvaluationSet:
    """Read an evaluation set.

    Parameters
    ----------
    path
        An ``.npz`` of ``x`` and ``y``, and perhaps ``anomaly``; of ``x`` without ``y`` for a model whose y is x.
    manifest
        The model's, by which labels become y as on devices; None: y is taken as it stands.

    Raises
    ------
    DataError
        If it is no such file, or unpacks to more than 1 GiB.
    """
    x, y = load_npz(path, max_bytes=MAX_EVALUATION_BYTES, manifest=manifest)
    try:
        # allow_pickle=False: a pickle is code, and the file may come from anywhere.
        with np.load(path, allow_pickle=False) as arrays:
            return EvaluationSet(x, y, arrays.get("anomaly"))
    except ValueError as error:
        raise DataError(f"evaluation set: anomaly is not a plain array ({error})") from error
