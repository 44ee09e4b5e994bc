"""Made-up card payments of three banks: few are frauds, at some banks fewer than at others.

``python -m examples.fraud.data FOLDER`` writes a folder for each bank with its ``data.csv``, the server's own test set, and the
first model.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from examples.fraud.model import COLUMNS, write_first_bundle
from fedgrass.tensors import Array

BANKS = {"north": (1500, 0.03), "south": (900, 0.05), "west": (600, 0.01)}
"""Payments, and the share of frauds among them."""
TEST = (2000, 0.03)


def payments(count: int, share: float, seed: int) -> tuple[Array, Array]:
    """Return x, float32 [n, 8], and y, int32 [n]: 1 is a fraud."""
    rng = np.random.default_rng(seed)
    y = (rng.random(count) < share).astype(np.int32)
    y[:2] = 0, 1  # some of each, however few there are
    x = rng.normal(size=(count, len(COLUMNS)))
    # Frauds are larger, later and farther away; half of them come in quick succession.
    x[y == 1] += np.array([1.8, 1.2, 1.5, 0.0, 0.0, -0.8, 0.0, 0.0])
    x[(y == 1) & (rng.random(count) < 0.5), 3] += 2.5
    return x.astype(np.float32), y


def write(folder: Path) -> None:
    """Write ``<bank>/data.csv``, ``evaluation.npz`` and ``bundle/``."""
    for seed, (bank, (count, share)) in enumerate(BANKS.items(), start=1):
        x, y = payments(count, share, seed)
        path = folder / bank / "data.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*COLUMNS, "fraud"])
            rows.writerows([*map(repr, map(float, values)), int(label)] for values, label in zip(x, y, strict=True))
    x, y = payments(*TEST, 0)
    np.savez(folder / "evaluation.npz", x=x, y=y)
    write_first_bundle(folder / "bundle")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
