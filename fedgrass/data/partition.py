"""Dividing one data set among devices as unevenly as real fleets are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgrass.errors import DataError
from fedgrass.tensors import Array


def dirichlet(
    labels: Array, devices: int, *, alpha: float, seed: int, min_examples: int = 10
) -> list[NDArray[np.intp]]:
    """Give each device its own mix of labels.

    For each label, the shares of the devices are drawn from a symmetric Dirichlet distribution: the smaller ``alpha``,
    the more one-sided each device (Hsu, Qi, Brown 2019, arXiv:1909.06335). Draws that leave a device with fewer than
    ``min_examples`` are repeated.

    Parameters
    ----------
    labels
        [n] whole numbers.

    Returns
    -------
    list of arrays
        The indices of each device's examples; together they hold every example once.

    Raises
    ------
    DataError
        If there are too few examples for so many devices.
    """
    if devices < 1 or len(labels) < devices * min_examples:
        raise DataError(
            f"{len(labels)} examples cannot give {devices} devices {min_examples} each; ask for fewer devices"
        )
    rng = np.random.default_rng(seed)
    # A draw fails more often the smaller alpha is: after a thousand, alpha is the reason.
    for _ in range(1000):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(devices)]
        for label in np.unique(labels):
            indices = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(devices, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(indices)).astype(int)
            for part, piece in zip(parts, np.split(indices, cuts), strict=True):
                part.append(piece)
        merged = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(part) for part in merged) >= min_examples:
            return merged
    raise DataError(f"no Dirichlet({alpha}) draw gave each of {devices} devices {min_examples} examples; raise alpha")
