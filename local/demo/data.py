"""Scikit-learn's handwritten digits, divided among the devices as unevenly as real fleets are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass.data import ArrayDataset
from fedgrass.data.partition import dirichlet
from fedgrass.tensors import Array

ALPHA = 0.3
KEPT_FRACTION = 0.2
_WHITE = 16.0  # the data set's pixels are whole numbers from 0 to 16


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
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    x: Array = (loaded.data / _WHITE).astype(np.float32).reshape(-1, *shape)
    y: Array = loaded.target.astype(np.int32)
    x_devices, x_kept, y_devices, y_kept = train_test_split(
        x, y, test_size=KEPT_FRACTION, random_state=seed, stratify=y
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
