"""Scikit-learn's handwritten digits, divided among the devices as unevenly as real fleets are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass.data import ArrayDataset
from fedgrass.data.digits import digits as all_digits
from fedgrass.data.partition import dirichlet

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
    # Late: scikit-learn takes long to import.
    from sklearn.model_selection import train_test_split

    every = all_digits(shape)
    x_devices, x_kept, y_devices, y_kept = train_test_split(
        every.x, every.y, test_size=KEPT_FRACTION, random_state=seed, stratify=every.y
    )
    parts = dirichlet(y_devices, len(things), alpha=ALPHA, seed=seed)
    return DemoData(
        {thing: ArrayDataset(x_devices[part], y_devices[part]) for thing, part in zip(things, parts, strict=True)},
        ArrayDataset(x_kept, y_kept),
    )


def save(data: ArrayDataset, path: Path) -> None:
    """Write examples as the ``npz`` loader reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=data.x, y=data.y)


def load(path: Path) -> ArrayDataset:
    """Read what `save` wrote."""
    with np.load(path) as stored:
        return ArrayDataset(stored["x"], stored["y"])
