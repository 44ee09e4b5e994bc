"""Which examples each virtual device has: offsets into one array, so that a device at rest costs a few numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedgrass.data.partition import dirichlet
from fedgrass.errors import DataError
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.tensors import Array

Indices = NDArray[np.integer[Any]]
Offsets = NDArray[np.int64]

_TOGETHER = 8192  # devices that are drawn at once


@dataclass(frozen=True)
class Partition:
    """Device ``d`` has the examples ``indices[starts[d]:starts[d + 1]]``; ``path`` is the file that these are mapped from."""

    starts: Offsets
    indices: Indices
    path: Path | None = None

    def of(self, device: int) -> Indices:
        """Return a device's examples."""
        start, end = int(self.starts[device]), int(self.starts[device + 1])
        if self.path is None:
            return self.indices[start:end]
        # Read, not looked up in the map: Linux maps sixteen pages around each that is touched, until each process has them all.
        size, file = self.indices.itemsize, self._file
        content = os.pread(file.fileno(), (end - start) * size, self._begin + start * size)
        return np.frombuffer(content, self.indices.dtype)

    @cached_property
    def _file(self) -> BinaryIO:
        return Path(self.path or os.devnull).open("rb", buffering=0)

    @cached_property
    def _begin(self) -> int:
        """Bytes before the first of the indices."""
        return os.fstat(self._file.fileno()).st_size - self.indices.nbytes

    def save(self, folder: Path) -> None:
        """Write it where other processes can map it."""
        np.save(folder / "starts.npy", self.starts)
        np.save(folder / "indices.npy", self.indices)

    @classmethod
    def mapped(cls, folder: Path) -> Partition:
        """Map what `save` wrote: all processes share the memory."""
        starts, indices = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("starts", "indices"))
        return cls(starts, indices, folder / "indices.npy")


def drawn(
    labels: Array, devices: int, examples: int, scheme: PartitionScheme, *, seed: int, numbers: Array | None = None
) -> Partition:
    """Let each device draw its examples, repetitions allowed: any number of devices from any number of examples.

    ``iid`` draws from all of them; ``dirichlet`` draws each device its own mix of labels first (Hsu, Qi, Brown 2019,
    arXiv:1909.06335), ``shards`` gives each device so many labels (McMahan et al. 2017, arXiv:1602.05629).

    Parameters
    ----------
    labels
        [n] of the examples: whole numbers, but for ``iid``.
    devices, examples
        How many devices, and how many examples each has.
    scheme
        How labels are spread.
    seed
        Of all that is drawn.
    numbers
        [n], what the examples are to be called; by their places if not given.

    Returns
    -------
    Partition
        Numbers of each device's examples.

    Raises
    ------
    DataError
        If the labels are not classes, or not as many as a device is to have.
    """
    rng = np.random.default_rng(seed)
    starts = np.arange(devices + 1, dtype=np.int64) * examples
    classes = _classes(labels) if scheme.kind != "iid" else []
    if scheme.kind == "shards" and scheme.value > len(classes):
        raise DataError(f"partition shards:{scheme.value:g}: the data have {len(classes)} labels")
    # As narrow as they go, and block by block: those of a million devices are most of what a simulation holds.
    names = _narrow(np.arange(len(labels)) if numbers is None else numbers)
    indices = np.empty(devices * examples, names.dtype)
    for first in range(0, devices, _TOGETHER):
        some = min(_TOGETHER, devices - first)
        if scheme.kind == "iid":
            block: Array = rng.integers(0, len(labels), some * examples, dtype=np.int32)
        else:
            block = _block(classes, some, examples, scheme, rng)
        indices[first * examples : (first + some) * examples] = names[block]
    return Partition(starts, indices)


def divided(
    labels: Array, devices: int, scheme: PartitionScheme, *, seed: int, numbers: Array | None = None
) -> Partition:
    """Divide examples over devices, each example to one device.

    With ``shards``, each device has exactly so many labels; as many devices share each label as share any other, or one more,
    and its examples evenly (as NIID-Bench's #C=k, Li et al. 2022, arXiv:2102.02079, which draws who shares what).

    Parameters
    ----------
    labels
        int [n], a class of each example; looked at only where the scheme goes by them.
    devices
        Number of devices.
    scheme
        How labels are spread.
    seed
        Of all that is drawn.
    numbers
        [n], what the examples are to be called; by their places if not given.

    Returns
    -------
    Partition
        Numbers of each device's examples.

    Raises
    ------
    DataError
        If there are too few of them.
    """
    rng = np.random.default_rng(seed)
    if scheme.kind == "dirichlet":
        _classes(labels)
        parts = dirichlet(labels, devices, alpha=scheme.value, seed=seed, min_examples=1)
    elif scheme.kind == "shards":
        parts = _by_label(_classes(labels), devices, int(scheme.value), rng)
    else:
        if len(labels) < devices:
            raise DataError(
                f"{len(labels)} examples are not enough for {devices} devices; let them draw (--examples 40)"
            )
        parts = list(np.array_split(rng.permutation(len(labels)), devices))
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    names = _narrow(np.arange(len(labels)) if numbers is None else numbers)
    return Partition(starts, names[np.concatenate(parts)])


def _narrow(numbers: Array) -> Array:
    """Return whole numbers in the smallest dtype that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _by_label(classes: list[Indices], devices: int, each: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Give each device its labels, of those that the fewest have so far, and its part of their examples."""
    scheme = f"partition shards:{each}"
    if each > len(classes):
        raise DataError(f"{scheme}: the data have {len(classes)} labels")
    if devices * each < len(classes):
        raise DataError(
            f"{scheme}: {devices} devices would leave out labels, of which the data have {len(classes)}; ask for more of either"
        )
    holders: list[list[int]] = [[] for _ in classes]
    for device in range(devices):
        # By the number of holders, equals in random order.
        fewest = np.lexsort((rng.random(len(classes)), np.array([len(some) for some in holders])))
        for label in fewest[:each]:
            holders[label].append(device)
    parts: list[list[Indices]] = [[] for _ in range(devices)]
    for label, (pool, some) in enumerate(zip(classes, holders, strict=True)):
        if len(pool) < len(some):
            raise DataError(
                f"{scheme}: label number {label} has {len(pool)} examples for {len(some)} devices; let them draw (--examples 40)"
            )
        for device, piece in zip(some, np.array_split(rng.permutation(pool), len(some)), strict=True):
            parts[device].append(piece)
    return [np.sort(np.concatenate(part)).astype(np.intp) for part in parts]


def _classes(labels: Array) -> list[Indices]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError("partition: the examples' labels are not classes, by which devices could differ; use iid")
    return [np.flatnonzero(labels == label).astype(np.int32) for label in np.unique(labels)]


def _block(
    classes: list[Indices], devices: int, examples: int, scheme: PartitionScheme, rng: np.random.Generator
) -> Indices:
    """Draw some devices' examples, one device after the other."""
    if scheme.kind == "dirichlet":
        counts = rng.multinomial(examples, rng.dirichlet(np.full(len(classes), scheme.value), size=devices))
    else:
        each = int(scheme.value)
        # A random order of the labels for each device, of which the first ones are its own.
        chosen = np.argsort(rng.random((devices, len(classes))), axis=1)[:, :each]
        counts = np.zeros((devices, len(classes)), np.int64)
        np.put_along_axis(counts, chosen, examples // each, axis=1)
        # What does not divide evenly goes to its first labels, one each.
        np.put_along_axis(counts, chosen[:, : examples % each], examples // each + 1, axis=1)
    # Label by label for all devices, then put in the order of devices: no Python loop over a million of them.
    owners = [np.repeat(np.arange(devices), counts[:, label]) for label in range(len(classes))]
    found = [pool[rng.integers(0, len(pool), len(who))] for pool, who in zip(classes, owners, strict=True)]
    return np.concatenate(found)[np.argsort(np.concatenate(owners), kind="stable")]
