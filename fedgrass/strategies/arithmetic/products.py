"""Scalar products, distances and weighted means of updates, a tile of all of them at a time; robust rules share these."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedgrass.errors import AggregationError
from fedgrass.strategies.arithmetic.columns import over_tiles
from fedgrass.strategies.arithmetic.interfaces import UpdateMatrix
from fedgrass.update.codecs import Floats

Doubles = NDArray[np.float64]


def scalar_products(rows: UpdateMatrix, *, origin: bool = False) -> Doubles:
    """Return the scalar products [n, n] of the rows, seen from the one of middle norm; ``origin`` adds a row of zeros.

    Distances are the same from anywhere; from among the rows they keep their digits, and from a row of middle norm even when
    others are 1e30 away.
    """
    count = len(rows.facts)
    # Not the mean: one update of 1e30 would take all others' digits with it.
    middle = sorted(range(count), key=lambda row: rows.facts[row].norm or 0.0)[count // 2]
    total = np.zeros((count + origin, count + origin))
    for columns in rows.tiles():
        values = rows.read(columns)
        centred = np.zeros((count + origin, values.shape[1]))
        centred[:count] = values
        centred -= values[middle].astype(np.float64)
        total += centred @ centred.T
    return total


def squared_distances(products: Doubles) -> Doubles:
    """Return the squared distances [n, n] between rows of which these are the scalar products."""
    squares = products.diagonal()
    # Rounding may leave a small negative number.
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances


def krum_scores(distances: Doubles, attackers: int) -> Doubles:
    """Return for each row the sum of its n - f - 2 smallest squared distances to others; at least one counts."""
    nearest = max(1, len(distances) - attackers - 2)
    # From 1 on: the first is the distance to itself.
    return np.asarray(np.sort(distances, axis=1)[:, 1 : nearest + 1].sum(axis=1))


def weighted_mean(rows: UpdateMatrix, shares: Doubles, out: Floats) -> list[float]:
    """Sum the rows of a matrix, each times its share, in float64.

    Parameters
    ----------
    rows
        Updates [n, parameters].
    shares
        float64 [n]; rows with a share of 0 are not read.
    out
        float32 [parameters], overwritten.

    Returns
    -------
    list
        The shares.
    """
    chosen = [int(row) for row in np.flatnonzero(shares)]

    def work(columns: slice, values: Floats) -> None:
        total = np.zeros(values.shape[1])
        for row, share in zip(values, shares[chosen], strict=True):
            total += share * row.astype(np.float64)
        out[columns] = total

    over_tiles(rows, work, chosen)
    return [float(share) for share in shares]


def attackers_among(share: float, count: int, *, room: int, more: int = 1) -> int:
    """Bound how many of the updates may be attackers', and check that the others outvote them.

    Parameters
    ----------
    share
        Share of attackers to withstand, from 0 to below 1.
    count
        Number of good updates.
    room, more
        The rule needs ``room`` times the attackers, and ``more``, updates.

    Returns
    -------
    int
        The number of attackers.

    Raises
    ------
    AggregationError
        If there are too few updates.

    Examples
    --------
    >>> attackers_among(0.2, 10, room=2)
    2
    """
    # 1e-9: 0.29 * 100 is a little less than 29.
    attackers = math.floor(share * count + 1e-9)
    if count < room * attackers + more:
        raise AggregationError(
            f"{count} good updates do not withstand {attackers} attackers: expected at least {room * attackers + more}. Lower "
            "the strategy's 'attackers' or ask more devices"
        )
    return attackers
