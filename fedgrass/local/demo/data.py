"""Scikit-learn's handwritten digits, divided among the devices as unevenly as real fleets are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgrass.data import ArrayDataset
from fedgrass.data.digits import digits as all_digits
from fedgrass.data.partition import dirichlet
from fedgrass.tensors import Array

# Of the Dirichlet distribution: the smaller it is, the fewer labels each device sees.
ALPHA = 0.3
KEPT_FRACTION = 0.2


@dataclass(frozen=True)
class DemoData:
    """``devices`` hold their own part each; ``kept`` is seen by none of them and judges the models."""

    devices: dict[str, ArrayDataset]
    kept: ArrayDataset

    @property
    def pooled(self) -> ArrayDataset:
        """All devices' examples in one place, which federated learning does without."""
        parts = list(self.devices.values())
        return ArrayDataset(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def digits(things: list[str], *, shape: tuple[int, ...], seed: int) -> DemoData:
    """Divide the 1,797 digits: 20 % kept, the rest by a Dirichlet(0.3) mix of labels for each device.

    Parameters
    ----------
    shape
        What the model takes for one image, holding 64 values.
    """
    every = all_digits(shape)
    kept = _kept(every.y, seed)
    x, y = every.x[~kept], every.y[~kept]
    parts = dirichlet(y, len(things), alpha=ALPHA, seed=seed)
    return DemoData(
        {thing: ArrayDataset(x[part], y[part]) for thing, part in zip(things, parts, strict=True)},
        ArrayDataset(every.x[kept], every.y[kept]),
    )


def _kept(labels: Array, seed: int) -> NDArray[np.bool_]:
    """Say of which examples [n] the models are judged: the same share of each label's, by lot."""
    rng, kept = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        drawn = rng.permutation(np.flatnonzero(labels == label))
        kept[drawn[: round(KEPT_FRACTION * len(drawn))]] = True
    return kept


def save(data: ArrayDataset, path: Path) -> None:
    """Write examples as the ``npz`` loader reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=data.x, y=data.y)


def load(path: Path) -> ArrayDataset:
    """Read what `save` wrote."""
    with np.load(path) as stored:
        return ArrayDataset(stored["x"], stored["y"])
