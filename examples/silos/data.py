"""An imbalanced tabular set: scikit-learn's breast cancer data, cut so that no participant sees the whole of it.

Two clinics and two devices differ in size, and in how common each diagnosis is among their patients.
``python -m examples.silos.data FOLDER`` writes a CSV for each, the evaluation set, and the first model.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

from examples.silos.model import write_first_bundle
from fedgrass.tensors import Array

# (malignant, benign)
PARTICIPANTS = {"clinic-a": (20, 180), "clinic-b": (110, 20), "device-1": (8, 40), "device-2": (14, 6)}


def parts(seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """Return each participant's x, float32 [n, 30] scaled to mean 0 and deviation 1, and y; ``evaluation`` is what is left."""
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    rng = np.random.default_rng(seed)
    of_class = [rng.permutation(np.flatnonzero(y == label)) for label in (0, 1)]
    found = {}
    for name, counts in PARTICIPANTS.items():
        taken = np.concatenate([rows[:count] for rows, count in zip(of_class, counts, strict=True)])
        of_class = [rows[count:] for rows, count in zip(of_class, counts, strict=True)]
        found[name] = (x[taken], y[taken].astype(np.int32))
    left = np.concatenate(of_class)
    found["evaluation"] = (x[left], y[left].astype(np.int32))
    return found


def write(folder: Path) -> None:
    """Write ``<participant>.csv``, ``data.npz`` for evaluation, and ``bundle/``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in parts().items():
        if name == "evaluation":
            np.savez(folder / "data.npz", x=x, y=y)
            continue
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*(f"x{column}" for column in range(x.shape[1])), "label"])
            rows.writerows([*map(repr, map(float, values)), int(label)] for values, label in zip(x, y, strict=True))
    write_first_bundle(folder / "bundle")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
