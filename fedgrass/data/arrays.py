"""Examples held in memory, and their split into what trains and what judges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.data.account import Account
from fedgrass.engines.base import Batch, Dataset
from fedgrass.errors import DataError
from fedgrass.tensors import Array

Indices = NDArray[np.intp]


class Source(Protocol):
    """Examples that can be read by number, so that order and division cost no copy of them."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def read(self, indices: Indices) -> Batch:
        """Return these examples, in this order."""
        ...


class ArrayDataset:
    """Examples as arrays with one first axis: ``x`` [n, …] and ``y`` [n, …]; they may be memory-mapped.

    ``weights`` [n] are what each example's loss is times in training; None: 1.
    """

    def __init__(self, x: Array, y: Array, weights: Array | None = None) -> None:
        if len(x) != len(y):
            raise DataError(f"x has {len(x)} examples and y {len(y)}; both must have as many")
        if weights is not None and weights.reshape(-1).shape != (len(x),):
            raise DataError(
                f"sample_weight has shape {list(weights.shape)}; expected one for each of {len(x)} examples"
            )
        self.x = x
        self.y = y
        self.weights = None if weights is None else weights.reshape(-1)

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: Indices) -> Batch:
        """Return these examples; see `Source`."""
        weights = None if self.weights is None else self.weights.take(indices)
        # `take`, which is faster than fancy indexing for a few rows.
        return Batch(self.x.take(indices, axis=0), self.y.take(indices, axis=0), weights)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        # Unshuffled batches are slices, which copy nothing.
        if seed is not None:
            yield from Part(self, np.arange(len(self))).batches(batch_size, seed=seed)
            return
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield Batch(self.x[part], self.y[part], None if self.weights is None else self.weights[part])

    def take(self, count: int) -> ArrayDataset:
        """Return the first ``count`` examples (all, if there are fewer)."""
        return ArrayDataset(self.x[:count], self.y[:count], None if self.weights is None else self.weights[:count])


def shuffled(count: int, seed: int) -> Indices:
    """Return the numbers below ``count`` in an order that follows from the seed: by the words that SHAKE-128 makes of it.

    The order is the same with every version of NumPy, and a few dozen examples take a tenth of a new generator's time.
    """
    # Little-endian whatever the processor, so that all devices and the tests agree.
    words = np.frombuffer(hashlib.shake_128(str(seed).encode()).digest(8 * count), "<u8")
    return words.argsort(kind="stable")


class Part:
    """Some examples of a source as a `Dataset`; only a batch of them is in memory at a time."""

    def __init__(self, source: Source, indices: Indices) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def origin(self, position: int) -> int:
        """Return the number that an example of this part has in the source."""
        return int(self._indices[position])

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; see `fedgrass.engines.base.Dataset`."""
        order = self._indices if seed is None else self._indices[shuffled(len(self), seed)]
        for start in range(0, len(order), batch_size):
            yield self._source.read(order[start : start + batch_size])


@dataclass(frozen=True)
class Split:
    """What trains the model, and what judges a new one before it is let in."""

    train: Dataset
    validation: Dataset
    account: Account | None = None
    """What the loader left out, filled in and guessed."""


def split(x: Array, y: Array, *, validation_fraction: float, seed: int) -> Split:
    """Divide examples in memory into those to train on and those to validate with; see `divide`.

    Parameters
    ----------
    x
        Inputs [n, …].
    y
        Labels [n, …].
    validation_fraction
        Share that is kept back, from 0 to below 1.
    seed
        Of the shuffle.

    Returns
    -------
    Split
        Both parts.

    Examples
    --------
    >>> import numpy as np
    >>> parts = split(np.zeros((10, 4), np.float32), np.arange(10), validation_fraction=0.2, seed=0)
    >>> len(parts.train), len(parts.validation)
    (8, 2)
    """
    return divide(ArrayDataset(x, y), validation_fraction=validation_fraction, seed=seed)


def divide(source: Source, *, validation_fraction: float, seed: int) -> Split:
    """Divide examples by a seeded shuffle, so that the same data always divide alike.

    Both parts get at least one example where there are two or more.

    Parameters
    ----------
    source
        The examples, which are not read yet.
    validation_fraction
        Share that is kept back, from 0 to below 1.
    seed
        Of the shuffle.

    Returns
    -------
    Split
        Both parts, which read from ``source`` when asked for batches.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    held = 0
    if validation_fraction > 0 and len(source) > 1:
        # At least one to train on, whatever the fraction.
        held = min(max(1, round(len(source) * validation_fraction)), len(source) - 1)
    return Split(train=Part(source, order[held:]), validation=Part(source, order[:held]))
