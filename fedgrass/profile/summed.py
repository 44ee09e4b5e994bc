"""Statistics as one bounded vector for each device: what noise goes on and masks add up, as they do on a model's update.

A device tells of ``max_rows`` examples at most. Its vector holds counts, so the sum of all is the fleet's: of each feature its
histogram and missing values, the sum of its values and that of their squares, both as shares of the way between the bounds, and
how many examples have each label. The vector's length is bounded by these rows alone, whatever the data:

    ‖v‖² ≤ 3 f (rows)² + l (rows)²

as a histogram with its missing values is no longer than its sum, and neither is the sum of shares or squares. So the noise of
the round, in units of that bound, is what it is for an update of the clipping norm, and the same account holds.

Minimum, maximum and sketches are no sums, and are not told; quantiles come from the noised histogram.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest, TensorDescription
from fedgrass.engines.base import Batch, Dataset
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.profile.features import at_once, check_inputs, feature_names, label_counts, label_names, one_label
from fedgrass.profile.sums import Bounds, Doubles, FeatureSums
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import QUANTILES, Feature, Label, Quantile
from fedgrass.tensors import Array

TENSOR = "statistics"
DEVIATIONS = 3.0
"""Standard deviations of the noise that an error told has room for: 99.7 % of the time it holds for any one figure."""
# Below the clipping norm, for float32's rounding of each value.
_BELOW = 1 - 2.0**-14
_NOTHING_KNOWN = 0.5
_EXTRA = 3  # missing, sum, sum of squares


@dataclass(frozen=True)
class SummedLayout:
    """How counts lie in the vector, and what one count is there; all sides compute it from the announcement.

    Attributes
    ----------
    bounds
        Of the histograms.
    features, labels
        How many there are.
    rows
        Values of each feature in an example.
    max_rows
        Examples of which a device tells at most.
    unit
        What one count is in the vector.
    step
        To what multiples the vector's values are rounded, by chance, where updates are masked; else 0.
    """

    bounds: Bounds
    features: int
    labels: int
    rows: int
    max_rows: int
    unit: float
    step: float = 0.0

    @classmethod
    def of(cls, manifest: Manifest, announcement: Announcement, bounds: Bounds | None) -> SummedLayout:
        """Return it.

        Raises
        ------
        DataError
            If there are no bounds: nothing is a bounded sum then.
        ConfigurationError
            If masked integers are too narrow.
        """
        task = announcement.statistics
        if task is None or task.max_rows is None or bounds is None:
            raise DataError(
                "statistics with noise or masks: histograms and means need bounds, and the round names none. Set statistics.low "
                "and statistics.high, or take the profile of an earlier round of this model"
            )
        features, labels = len(feature_names(manifest)), len(label_names(manifest))
        rows = manifest.x.size // features
        values = task.max_rows * rows
        # The labels of an example are one, or any number of several that may each be there.
        marks = (1 if one_label(manifest) else labels) if labels else 0
        longest = math.sqrt(3 * features * values**2 + marks * task.max_rows**2)
        size = features * (bounds.bins + 2 + _EXTRA) + labels
        secure, clip = announcement.secure, announcement.update.clip_norm
        step = secure.value_range / secure.levels if secure is not None else 0.0
        # Rounding by chance may lengthen the vector, and it must not be clipped for that.
        room = clip * _BELOW - math.sqrt(size) * step
        if clip > 0 and room < clip / 2:
            raise ConfigurationError(
                f"secure.bits: too narrow for {size} numbers of clip_norm {clip:g}; set bits to 32, lower secure.value_range or "
                "statistics.bins"
            )
        units = [room / longest] if clip > 0 else []
        units += [secure.value_range / values] if secure is not None else []
        if not units:
            raise DataError("statistics as sums: the round bounds nothing (clip_norm) and masks nothing (secure)")
        return cls(bounds, features, labels, rows, task.max_rows, min(units), step)

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        return self.bounds.bins + 2 + _EXTRA

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.features * self.width + self.labels

    @property
    def description(self) -> TensorDescription:
        """The vector as a model's parameter: what updates are made of, and added up."""
        return TensorDescription(name=TENSOR, shape=(self.size,), dtype="float32")

    def deviation(self, noise: float, devices: int) -> float:
        """Return the standard deviation of each count in the sum, of noise and of rounding by chance.

        Parameters
        ----------
        noise
            That of the noise on the sum, in the vector's unit.
        devices
            How many are in the sum.
        """
        # A rounding by chance deviates by half a step at most.
        return math.hypot(noise, math.sqrt(devices) * self.step / 2) / self.unit


def vector_of(examples: Dataset, manifest: Manifest, layout: SummedLayout) -> tuple[Array, int]:
    """Return a device's vector, float32 [size], and of how many examples it tells.

    Raises
    ------
    DataError
        If there are no examples, or they do not fit the model.
    """
    counts = np.zeros((layout.features, layout.width))
    labels, told = np.zeros(layout.labels), 0
    low, span = layout.bounds.low, layout.bounds.high - layout.bounds.low
    place = np.arange(layout.features) * (layout.bounds.bins + 2)
    for batch in _first(examples, layout.max_rows, at_once(manifest)):
        check_inputs(batch, manifest)
        x = np.asarray(batch.x, np.float64).reshape(-1, layout.features)
        there = np.isfinite(x)
        histogram = np.bincount(
            (layout.bounds.places(x) + place)[there], minlength=layout.features * (layout.bounds.bins + 2)
        )
        counts[:, :-_EXTRA] += histogram.reshape(layout.features, -1)
        counts[:, -3] += (~there).sum(axis=0)
        with np.errstate(all="ignore"):
            share = np.clip(np.where(there & (span > 0), (x - low) / span, 0.0), 0.0, 1.0)
        counts[:, -2] += share.sum(axis=0)
        counts[:, -1] += np.square(share).sum(axis=0)
        if layout.labels:
            labels += label_counts(batch, manifest, layout.labels)
        told += len(batch.x)
    if not told:
        raise DataError(f"no examples for model {manifest.name!r}; check the data loader's path and filters")
    return (np.concatenate([counts.ravel(), labels]) * layout.unit).astype(np.float32), told


def _first(examples: Dataset, most: int, at_once: int) -> Iterator[Batch]:
    left = most
    for batch in examples.batches(min(at_once, most)):
        yield batch.first(left)
        left -= len(batch.x)
        if left <= 0:
            return


@dataclass(frozen=True)
class FleetSums:
    """The sum of all devices' vectors in counts, with the noise that is on it.

    Attributes
    ----------
    counts
        float64 [features, width].
    labels
        float64 [labels].
    deviation
        Of each count.
    """

    layout: SummedLayout
    counts: Doubles
    labels: Doubles
    deviation: float

    @classmethod
    def of(cls, mean: Array, devices: int, layout: SummedLayout, noise: float) -> FleetSums:
        """Take the mean of ``devices`` vectors, whose sum has noise of a deviation in the vector's unit."""
        counts = mean.astype(np.float64) * (devices / layout.unit)
        split = layout.features * layout.width
        shape = (layout.features, layout.width)
        return cls(layout, counts[:split].reshape(shape), counts[split:], layout.deviation(noise, devices))

    @property
    def examples(self) -> float:
        """How many examples there are, by what all features say together."""
        values = self.counts[:, :-2].sum() / self.layout.features
        return max(0.0, float(values / self.layout.rows))

    def label_list(self, manifest: Manifest) -> tuple[Label, ...]:
        """Return the labels' counts; noise below zero is none."""
        pairs = zip(label_names(manifest), np.maximum(self.labels, 0).tolist(), strict=True)
        return tuple(Label(name=name, count=count) for name, count in pairs)

    def feature(self, at: int, name: str) -> Feature:
        """Return what is known of a feature, each figure with its error."""
        bounds, row = self.layout.bounds, self.counts[at]
        low, high = float(bounds.low[at]), float(bounds.high[at])
        histogram, (missing, total, squares) = row[:-_EXTRA], row[-_EXTRA:]
        one = DEVIATIONS * self.deviation
        many = one * math.sqrt(len(histogram))
        found: dict[str, Any] = {
            "name": name,
            "count": max(0.0, float(histogram.sum())),
            "missing": max(0.0, float(missing)),
            "bounds": (low, high),
            "histogram": tuple(np.maximum(histogram, 0).round(6).tolist()),
        }
        count = float(histogram.sum())
        # With fewer values than the noise may make up there is no mean.
        if count <= many:
            return Feature(**found)
        mean, square = float(np.clip(total / count, 0, 1)), float(np.clip(squares / count, 0, 1))
        mean_error = (one + mean * many) / (count - many)
        # An error of half of the way between the bounds says nothing that these do not.
        if mean_error >= _NOTHING_KNOWN:
            return Feature(**found)
        square_error = (one + square * many) / (count - many)
        variance_error = square_error + (2 * mean + mean_error) * mean_error
        span = high - low
        found |= {
            "mean": low + span * mean,
            "mean_error": span * mean_error,
            "variance": span**2 * max(0.0, square - mean**2),
            "variance_error": span**2 * variance_error,
            # Twice: what is sorted below adds up the largest noise so far.
            "quantiles": tuple(self._quantiles(at, 2 * many / count)),
        }
        return Feature(**found)

    def _quantiles(self, at: int, rank_error: float) -> Iterator[Quantile]:
        """Yield the quantiles whose rank, give or take the noise's part in it, lies within the bounds."""
        bounds = self.layout.bounds
        one = FeatureSums(1, 0, Bounds(bounds.low[at : at + 1], bounds.high[at : at + 1], bounds.bins, held=True))
        one.low, one.high = bounds.low[at : at + 1], bounds.high[at : at + 1]
        # Noise below zero is taken off by sorting what came before, so that no rank goes back.
        behind = np.maximum.accumulate(np.maximum(np.cumsum(self.counts[at, :-_EXTRA]), 0))
        one.histogram = np.diff(behind, prepend=0.0)[np.newaxis]
        for share in QUANTILES:
            if not rank_error <= share <= 1 - rank_error:
                continue
            near = [one.quantile(0, part) for part in (share - rank_error, share, share + rank_error)]
            if near[0] is None or near[1] is None or near[2] is None:
                continue
            value = near[1][0]
            error = max(value - (near[0][0] - near[0][1]), near[2][0] + near[2][1] - value, near[1][1])
            yield Quantile(share=share, value=value, error=error)
