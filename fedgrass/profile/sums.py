"""Sums over examples, feature by feature, that add up over batches and devices: NumPy only, memory by features alone.

Means and squared distances are joined without cancellation (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
for Computing Sample Variances", 1979): what is added is a distance from a mean, never a square of a large number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

ROUNDING = 1e-12
"""Of a value: what float64's rounding leaves between devices that all have it."""


@dataclass(frozen=True)
class Bounds:
    """Where each feature's histogram begins and ends, float64 [f] both, and its number of equal bins.

    ``held``: no minimum or maximum is told beyond them, so nothing is known of where the values there lie.
    """

    low: Doubles
    high: Doubles
    bins: int
    held: bool = False

    def edges(self, feature: int) -> Doubles:
        """Return the bins' edges [bins + 1] of a feature."""
        low, high = self.low[feature], self.high[feature]
        parts = np.arange(self.bins + 1) / self.bins
        edges: Doubles = low * (1 - parts) + high * parts  # no difference, which may be beyond float64
        return edges

    def places(self, x: Doubles) -> NDArray[np.int64]:
        """Return the place in the histogram of each value [n, f]: 0 is below, bins + 1 above, NaN anywhere."""
        # Halves, whose difference cannot overflow where that of the whole could.
        half = self.high / 2 - self.low / 2
        with np.errstate(all="ignore"):
            share = np.where(half > 0, (x / 2 - self.low / 2) / half, 0.0)
            inner = np.clip(np.floor(np.nan_to_num(share) * self.bins), 0, self.bins - 1)
        found: NDArray[np.int64] = inner.astype(np.int64) + 1
        found[x < self.low] = 0
        found[x > self.high] = self.bins + 1
        return found


class FeatureSums:
    """Sums over some examples; all arrays are float64, so that counts are exact below 2**53.

    Attributes
    ----------
    count, missing
        [f] values that are finite, and that are not.
    mean, m2
        [f] mean, and summed squared distance from it.
    low, high
        [f] least and greatest value; infinite the wrong way round where there is none.
    histogram
        [f, bins + 2], or [f, 0] without bounds.
    labels
        [l] examples by label.
    examples
        How many there were.
    """

    def __init__(self, features: int, labels: int = 0, bounds: Bounds | None = None) -> None:
        self.bounds = bounds
        self.examples = 0.0
        self.count, self.missing, self.mean, self.m2 = (np.zeros(features) for _ in range(4))
        self.low, self.high = np.full(features, np.inf), np.full(features, -np.inf)
        self.histogram = np.zeros((features, bounds.bins + 2 if bounds else 0))
        self.labels = np.zeros(labels)

    def add(self, x: NDArray[Any], examples: int | None = None) -> None:
        """Add values; those of labels are for the caller to count.

        Parameters
        ----------
        x
            Numbers [n, f]. What is not finite counts as missing.
        examples
            How many they are of; None: each row is one.
        """
        # In double precision from here on: sums of many values lose their last digits in float32.
        x = np.asarray(x, np.float64)
        there = np.isfinite(x)
        count = there.sum(axis=0).astype(np.float64)
        divisor = np.maximum(count, 1)
        mean = np.where(there, x, 0.0).sum(axis=0) / divisor
        apart = np.where(there, x - mean, 0.0)
        # The mean's own rounding is taken out again (the corrected two-pass algorithm, same source).
        rest = apart.sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float64 is refused when it is written
            m2 = np.maximum(np.square(apart).sum(axis=0) - rest * rest / divisor, 0.0)
        self.low = np.minimum(self.low, np.where(there, x, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(there, x, -np.inf).max(axis=0, initial=-np.inf))
        self._join(count, mean + rest / divisor, m2)
        self.missing += len(x) - count
        if self.bounds is not None:
            wide = self.histogram.shape[1]
            # One count for all features: each has its own range of places in a flat array.
            places = self.bounds.places(x) + np.arange(x.shape[1]) * wide
            self.histogram += np.bincount(places[there], minlength=self.histogram.size).reshape(-1, wide)
        self.examples += len(x) if examples is None else examples

    def merge(self, other: FeatureSums, weight: float = 1.0) -> None:
        """Add another's sums, over the same bounds, as if each of its examples counted ``weight``."""
        self._join(other.count * weight, other.mean, other.m2 * weight)
        self.missing += other.missing * weight
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.histogram += other.histogram * weight
        self.labels += other.labels * weight
        self.examples += other.examples * weight

    def quantile(self, feature: int, share: float) -> tuple[float, float] | None:
        """Return a feature's quantile and its error: the value of that rank is within the error.

        None if there is no value, or it lies beyond bounds that are held.

        The rank is that of `numpy.quantile`'s ``inverted_cdf``: the least value that ``share`` of all are not above. It lies in a
        bin whose ends are known, and so is the answer.
        """
        counts = self.histogram[feature]
        total = counts.sum()
        if self.bounds is None or total == 0:
            return None
        wanted = max(share * total, np.finfo(np.float64).tiny)
        behind = np.cumsum(counts)
        # For shares such as 0.07 the product is itself rounded.
        # The first bin up to which there are as many values as the rank asks for.
        place = int(np.searchsorted(behind, wanted * (1 - 1e-12)))
        if self.bounds.held and place in (0, self.bounds.bins + 1):
            return None
        edges = np.concatenate([[-np.inf], self.bounds.edges(feature), [np.inf]])
        left, right = np.clip([edges[place], edges[place + 1]], self.low[feature], self.high[feature])
        within = (wanted - (behind[place] - counts[place])) / counts[place]
        value = left * (1 - within) + right * within
        # The edge between two bins is known to rounding.
        slack = 8 * np.finfo(np.float64).eps * max(abs(edges[1]), abs(edges[-2]))
        return float(value), float(max(value - left, right - value, 0.0) + slack)

    @property
    def variance(self) -> Doubles:
        """The variance [f] of all values; 0 where there is none."""
        found: Doubles = self.m2 / np.maximum(self.count, np.finfo(np.float64).tiny)
        return found

    def _join(self, count: Doubles, mean: Doubles, m2: Doubles) -> None:
        total = self.count + count
        # Where both sides are empty the mean stays 0, without a warning of 0 / 0.
        share = np.divide(count, total, out=np.zeros_like(total), where=total > 0)
        apart = mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            self.m2 = self.m2 + m2 + apart * apart * self.count * share
        # Of two equal sides neither has to be the first.
        self.mean = self.mean * (1 - share) + mean * share
        self.count = total
