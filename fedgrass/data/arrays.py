"""Examples held in memory, and their split into what trains and what judges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedgrass.engines.base import Batch, Dataset
from fedgrass.errors import DataError
from fedgrass.tensors import Array


class ArrayDataset:
    """Examples as two arrays with one first axis: ``x`` [n, …] and ``y`` [n, …]."""

    def __init__(self, x: Array, y: Array) -> None:
        if len(x) != len(y):
            raise DataError(f"x has {len(x)} examples and y {len(y)}; both must have as many")
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        order = None if seed is None else np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), batch_size):
            chosen = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield Batch(self.x[chosen], self.y[chosen])

    def take(self, count: int) -> ArrayDataset:
        """Return the first ``count`` examples (all, if there are fewer)."""
        return ArrayDataset(self.x[:count], self.y[:count])


@dataclass(frozen=True)
class Split:
    """What trains the model, and what judges a new one before it is let in."""

    train: Dataset
    validation: Dataset


def split(x: Array, y: Array, *, validation_fraction: float, seed: int) -> Split:
    """Divide examples by a seeded shuffle, so that the same data always divide alike.

    Both parts get at least one example where there are two or more.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    held = 0
    if validation_fraction > 0 and len(x) > 1:
        held = min(max(1, round(len(x) * validation_fraction)), len(x) - 1)
    judging, training = order[:held], order[held:]
    return Split(ArrayDataset(x[training], y[training]), ArrayDataset(x[judging], y[judging]))
