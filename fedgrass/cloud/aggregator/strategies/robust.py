"""Combinations that hold when some of the devices lie: each looks at all updates, a tile of all of them at a time.

``attackers`` is the share of the updates that may lie. Examples do not count here: a claim of many would be a vote of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgrass.cloud.aggregator.strategies.base import Rows
from fedgrass.cloud.aggregator.strategies.columns import in_order, middle, over_tiles
from fedgrass.errors import AggregationError
from fedgrass.update.codecs import Floats

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Median:
    """The median of each coordinate.

    Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, https://arxiv.org/abs/1803.01498
    """

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the medians; no row has more of a share than another."""
        count = len(rows.facts)

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = middle(ordered)

        over_tiles(rows, work)
        return [1 / count] * count


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without as many of its smallest and largest values as there may be liars (Yin et al. 2018)."""

    attackers: float

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the trimmed means."""
        count = len(rows.facts)
        cut = attackers_among(self.attackers, count, room=2)

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = ordered[:, cut : count - cut].mean(axis=1, dtype=np.float64)

        over_tiles(rows, work)
        return [1 / count] * count


@dataclass(frozen=True)
class GeometricMedian:
    """The point whose distances to all updates have the smallest sum, by smoothed Weiszfeld steps.

    Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022, https://arxiv.org/abs/1912.13445. The steps need
    scalar products only, so the updates are read twice whatever the number of steps.
    """

    iterations: int = 100
    smoothing: float = 1e-6

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the point, which is a weighted mean of the rows."""
        products = scalar_products(rows)
        count = len(products)
        shares = np.full(count, 1 / count)
        floor = self.smoothing * float(np.sqrt(products.diagonal().max(initial=0.0))) or 1.0
        for _ in range(self.iterations):
            along = products @ shares
            squares = np.maximum(products.diagonal() - 2 * along + shares @ along, 0)
            weights = 1 / np.maximum(np.sqrt(squares), floor)
            following = weights / weights.sum()
            moved = np.abs(following - shares).max()
            shares = following
            if moved < _STILL:
                break
        return weighted_mean(rows, shares, out)


_STILL = 1e-12


@dataclass(frozen=True)
class CenteredClipping:
    """The mean of the updates, each drawn towards it until it is no farther off than their median distance.

    Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021, https://arxiv.org/abs/2012.10333.
    It begins at the base itself, and the radius follows the cohort. Steps need scalar products only.

    Parameters
    ----------
    radius
        In units of the median distance.
    """

    radius: float = 1.0
    iterations: int = 5

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the centre, which is a weighted mean of the rows and the base."""
        products = scalar_products(rows, origin=True)
        count = len(products) - 1
        shares = np.zeros(count + 1)
        shares[count] = 1.0
        for _ in range(self.iterations):
            along = products @ shares
            squares = np.maximum(products.diagonal() - 2 * along + shares @ along, 0)[:count]
            distances = np.sqrt(squares)
            radius = self.radius * float(np.median(distances))
            steps = np.minimum(1.0, radius / np.maximum(distances, np.finfo(np.float64).tiny)) / count
            shares *= 1 - steps.sum()
            shares[:count] += steps
        return weighted_mean(rows, shares[:count], out)


@dataclass(frozen=True)
class Krum:
    """The mean of the ``chosen`` updates that lie closest to their neighbours; one of them is Krum, several Multi-Krum.

    ``chosen`` is a share of the updates; 0 takes one. Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", NeurIPS 2017.
    """

    attackers: float
    chosen: float = 0.0

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the mean of the chosen."""
        count = len(rows.facts)
        attackers = attackers_among(self.attackers, count, room=2, more=3)
        scores = krum_scores(squared_distances(scalar_products(rows)), attackers)
        chosen = np.argsort(scores, kind="stable")[: max(1, round(self.chosen * count))]
        shares = np.zeros(count)
        shares[chosen] = 1 / len(chosen)
        return weighted_mean(rows, shares, out)


@dataclass(frozen=True)
class Bulyan:
    """Krum again and again to choose n - 2f updates, then of each coordinate the mean of the n - 4f values nearest the median.

    El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, https://arxiv.org/abs/1802.07927
    """

    attackers: float

    def combine(self, rows: Rows, out: Floats) -> Sequence[float]:
        """Write the means."""
        count = len(rows.facts)
        attackers = attackers_among(self.attackers, count, room=4, more=3)
        left = list(range(count))
        distances = squared_distances(scalar_products(rows))
        chosen: list[int] = []
        for _ in range(count - 2 * attackers):
            scores = krum_scores(distances[np.ix_(left, left)], attackers)
            chosen.append(left.pop(int(scores.argmin())))
        chosen.sort()
        kept = len(chosen) - 2 * attackers

        def work(columns: slice, values: Floats) -> None:
            for part, ordered in in_order(values):
                out[columns][part] = _nearest_median(ordered, kept)

        over_tiles(rows, work, chosen)
        shares = np.zeros(count)
        shares[chosen] = 1 / len(chosen)
        return [float(share) for share in shares]


def scalar_products(rows: Rows, *, origin: bool = False) -> Doubles:
    """Return the scalar products [n, n] of the rows, seen from the one of middle norm; ``origin`` adds a row of zeros.

    Distances are the same from anywhere; from among the rows they keep their digits, and from a row of middle norm even when
    others are 1e30 away.
    """
    count = len(rows.facts)
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
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances


def krum_scores(distances: Doubles, attackers: int) -> Doubles:
    """Return for each row the sum of its n - f - 2 smallest squared distances to others; at least one counts."""
    nearest = max(1, len(distances) - attackers - 2)
    return np.asarray(np.sort(distances, axis=1)[:, 1 : nearest + 1].sum(axis=1))


def weighted_mean(rows: Rows, shares: Doubles, out: Floats) -> list[float]:
    """Write the sum of the rows, each times its share."""
    chosen = [int(row) for row in np.flatnonzero(shares)]

    def work(columns: slice, values: Floats) -> None:
        total = np.zeros(values.shape[1])
        for row, share in zip(values, shares[chosen], strict=True):
            total += share * row.astype(np.float64)
        out[columns] = total

    over_tiles(rows, work, chosen)
    return [float(share) for share in shares]


def _nearest_median(ordered: Floats, kept: int) -> Doubles:
    """Return of each row the mean of the ``kept`` values nearest its median."""
    count = ordered.shape[1]
    centred = ordered - middle(ordered)[:, None]
    # The values nearest the median are neighbours in order: of all such runs, take the one whose farther end is nearest.
    ends = np.maximum(-centred[:, : count - kept + 1], centred[:, kept - 1 :])
    runs = np.take_along_axis(ordered, ends.argmin(axis=1)[:, None] + np.arange(kept), axis=1)
    return np.asarray(runs.mean(axis=1, dtype=np.float64))


def attackers_among(share: float, count: int, *, room: int, more: int = 1) -> int:
    """Return how many of the updates may lie, if there are ``room`` times as many and ``more``."""
    attackers = math.floor(share * count + 1e-9)
    if count < room * attackers + more:
        raise AggregationError(
            f"{count} good updates do not withstand {attackers} attackers: expected at least {room * attackers + more}. Lower "
            "the strategy's 'attackers' or ask more devices"
        )
    return attackers
