"""Devices whose features differ from those of the others: another unit, swapped columns, a sensor that is silent.

What is usual is the median over a sample of the devices, so that a few that are wrong do not move it, and memory does not grow
with the fleet. Few devices have no usual: below `LEAST_DEVICES` nothing is judged.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedgrass.profile.sums import ROUNDING, Doubles, FeatureSums
from fedgrass.protocol.profile import Misfit

LEAST_DEVICES = 5
_SAMPLE_VALUES = 1 << 22
_MOST_SAMPLED = 1024
_FACTOR = 30.0
"""How many times larger or smaller than usual values are that have another unit: between 1 and 1,000."""
_SPREAD = 10.0
"""A feature whose size differs so much between the middle half of the devices has no usual size."""
_ALIKE = 0.25
"""Radians between the directions of (mean, deviation): another unit leaves them, rare values or an outlier do not."""
_FAR = 10.0
"""Scales from the usual mean, at which values have another zero."""
_APART = 3.0
"""The same of a column that may be another one."""
_NEAR = 2.0
"""Scales within which a column is what another usually is."""
_WIDER = 2.0
"""Powers of two by which the spread of a column differs that may be another one."""
_SPREADS = 2.0
"""A feature whose spread differs so much between the middle half of the devices has no usual spread."""
_MIDDLE_HALVES = 3.0
_MOST_COLUMNS = 256
_MOST_MISSING = 0.5


class Sample:
    """Means and deviations of some devices, the same ones in whatever order they come: by digest of their names."""

    def __init__(self, features: int) -> None:
        # Bounded by devices and by values: models with many features get a smaller sample.
        self._most = max(LEAST_DEVICES, min(_MOST_SAMPLED, _SAMPLE_VALUES // max(1, features)))
        self._kept: list[tuple[int, str, Doubles, Doubles, Doubles]] = []

    def add(self, thing: str, sums: FeatureSums) -> None:
        """Offer a device; the ones kept are those of the smallest digests, whatever the order."""
        # Negative, because the heap's first is its smallest: the device with the largest digest leaves first.
        rank = -int.from_bytes(hashlib.sha256(thing.encode()).digest()[:8], "big")
        mean = np.where(sums.count > 0, sums.mean, np.nan)
        deviation = np.where(sums.count > 0, np.sqrt(sums.variance), np.nan)
        entry = (rank, thing, mean, deviation, _missing_share(sums))
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, entry)
        elif rank > self._kept[0][0]:
            heapq.heapreplace(self._kept, entry)

    def usual(self) -> Usual | None:
        """Return what is usual; None if too few devices are there."""
        if len(self._kept) < LEAST_DEVICES:
            return None
        return Usual(*(np.stack([entry[part] for entry in self._kept]) for part in (2, 3, 4)))


def _missing_share(sums: FeatureSums) -> Doubles:
    share: Doubles = sums.missing / np.maximum(sums.missing + sums.count, 1)
    return share


class Usual:
    """What the features of most devices are like.

    Parameters
    ----------
    means, deviations
        [d, f] of some devices; NaN where one has no value.
    missing
        [d, f] shares of missing values.
    """

    def __init__(self, means: Doubles, deviations: Doubles, missing: Doubles) -> None:
        # Judged is only what enough devices of the sample have.
        self._judged = (~np.isnan(means)).sum(axis=0) >= LEAST_DEVICES
        low, self._mean, high = _quartiles(means)
        _, self._deviation, _ = _quartiles(deviations)
        # The root of mean² + variance: another unit multiplies it, whether the values lie around zero or far from it.
        smaller, self._size, larger = _quartiles(np.hypot(means, deviations))
        self._has_a_size = self._judged & (smaller > 0) & (larger <= _SPREAD * smaller)
        _, self._direction, _ = _quartiles(np.arctan2(deviations, np.abs(means)))
        scale = np.maximum(_MIDDLE_HALVES * (high - low), self._deviation)
        # Of a feature that is one value on most devices nobody knows how far is far: the only measure is that value, and of 0,
        # such as where a device is not ("at site 3: no"), there is none.
        self._scale = np.where(scale > ROUNDING * np.abs(self._mean), scale, np.abs(self._mean))
        narrower, _, wider = _quartiles(deviations)
        # Only where devices have about the same spread does another one say anything: rare values differ by chance.
        self._has_a_spread = self._judged & (narrower > 0) & (wider <= _SPREADS * narrower)
        self._missing = np.median(missing, axis=0)

    def misfits(self, thing: str, sums: FeatureSums, names: tuple[str, ...]) -> list[Misfit]:
        """Return what does not fit in a device's sums, by feature.

        Parameters
        ----------
        thing
            The device's name.
        sums
            Its sums.
        names
            The features'.
        """
        there = (sums.count > 0) & self._judged
        # Only where most devices have values: a column that is empty everywhere is not this device's fault.
        silent = np.flatnonzero(self._judged & (sums.count == 0) & (self._missing < _MOST_MISSING))
        found = {at: Misfit(thing=thing, feature=names[at], kind="missing") for at in silent.tolist()}
        deviation = np.sqrt(sums.variance)
        with np.errstate(all="ignore"):
            # A device whose own values are spread so widely is not far from anything.
            apart = np.abs(sums.mean - self._mean) / np.maximum(self._scale, deviation)
            apart = np.where(self._scale > 0, apart, 0.0)
            wider = np.abs(np.log2(deviation / self._deviation))
            ratio = np.hypot(sums.mean, deviation) / self._size
        turned = np.abs(np.arctan2(deviation, np.abs(sums.mean)) - self._direction)
        resized = (ratio > _FACTOR) | (ratio < 1 / _FACTOR)
        scaled = there & self._has_a_size & resized & (ratio > 0) & (turned < _ALIKE)
        for at in np.flatnonzero(scaled | (there & (apart > _FAR))).tolist():
            factor = float(ratio[at]) if scaled[at] else None
            kind: Literal["scale", "offset"] = "offset" if factor is None else "scale"
            found[at] = Misfit(thing=thing, feature=names[at], kind=kind, factor=factor)
        odd = there & ((apart > _APART) | (self._has_a_spread & (wider > _WIDER)))
        # Last, and over what was found before: swapped columns look like another unit or another zero at first.
        for at, other in self._permuted(np.flatnonzero(odd)[:_MOST_COLUMNS], sums.mean, deviation).items():
            found[at] = Misfit(thing=thing, feature=names[at], kind="column", like=names[other])
        return [found[at] for at in sorted(found)]

    def _permuted(self, odd: NDArray[np.intp], mean: Doubles, deviation: Doubles) -> dict[int, int]:
        """Return, of features that are odd, which of the others each looks like, as far as they have only changed places."""
        with np.errstate(all="ignore"):
            apart = np.abs(mean[odd][:, None] - self._mean[odd]) / self._scale[odd]
            # Differences in spread count as their distances in powers of two.
            wider = np.abs(np.log2(deviation[odd][:, None] / self._deviation[odd]))
        distance = np.maximum(apart, np.where(np.isnan(wider), 0.0, wider))
        np.fill_diagonal(distance, np.inf)
        like: dict[int, int] = {}
        # The best match first; each column takes and is taken once.
        for flat in np.argsort(distance, axis=None).tolist():
            row, column = divmod(flat, len(odd))
            if not distance[row, column] < _NEAR:
                break
            if int(odd[row]) not in like and int(odd[column]) not in like.values():
                like[int(odd[row])] = int(odd[column])
        # Those that have changed places are in each other's.
        while stray := [at for at in like if at not in like.values() or like[at] not in like]:
            for at in stray:
                del like[at]
        return like


def leaves_out(misfits: Iterable[Misfit]) -> bool:
    """Whether a device's sums would spoil the fleet's: not if it only lacks values."""
    return any(misfit.kind != "missing" for misfit in misfits)


def _quartiles(values: Doubles) -> Doubles:
    """Return the quartiles [3, f] of each feature over the devices [d, f] that have it; 0 where none has."""
    none = np.isnan(values).all(axis=0)
    found: Doubles = np.nanquantile(np.where(none, 0.0, values), (0.25, 0.5, 0.75), axis=0)
    return found
