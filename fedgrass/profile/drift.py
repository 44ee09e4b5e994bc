"""How far a device's live data are from the fleet's profile: population stability and distance of quantiles, in bounded memory.

The population stability index of shares p and q over the same groups is Σ (q - p) ln(q / p) (Siddiqi, "Credit Risk Scorecards",
2006), which is the symmetric Kullback-Leibler divergence. Groups are neighbouring bins of the profile's histogram with about a
tenth of the fleet's values each, and one for missing values: with fewer groups than bins, chance alone makes less of some hundred
examples (about (groups - 1) / rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.bundle import Manifest
from fedgrass.engines.base import Dataset
from fedgrass.errors import DataError, TensorFileError
from fedgrass.profile.features import feature_names, measured
from fedgrass.profile.sums import Bounds, Doubles, FeatureSums
from fedgrass.protocol.drift import MOST_DISTANCE, MOST_INDEX, Drift
from fedgrass.protocol.profile import Feature, Profile

GROUPS = 10
"""Groups of values that a feature has at most; missing ones are one more."""
_LEAST = 1e-4
"""Share that an empty group counts as: the logarithm of none is infinite."""
_MOST_BYTES = 1 << 20
_LEAST_ROWS = 100
"""Examples below which a device's first look is not kept: the figures of change would tell of its chance."""


def stability_index(expected: Doubles, found: Doubles) -> Doubles:
    """Return the population stability index of counts over the same groups.

    Parameters
    ----------
    expected, found
        Counts [..., groups], of any total. Where either total is 0 nothing can be said, and the index is 0.

    Returns
    -------
    numpy.ndarray
        [...], 0 where both have the same shares.

    Examples
    --------
    >>> import numpy as np
    >>> float(np.round(stability_index(np.array([50.0, 50.0]), np.array([20.0, 80.0])), 4))
    0.4159
    """
    totals = [counts.sum(axis=-1, keepdims=True) for counts in (expected, found)]
    shares = [
        np.maximum(counts / np.maximum(total, 1e-300), _LEAST)
        for counts, total in zip((expected, found), totals, strict=True)
    ]
    index = ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum(axis=-1)
    known = np.logical_and(*(total[..., 0] > 0 for total in totals))
    return np.where(known, np.clip(index, 0.0, MOST_INDEX), 0.0)


def groups_of(histogram: Doubles) -> NDArray[np.intp]:
    """Return the group [bins] of each bin: by where the middle of its values lies among all of the feature's.

    A bin that holds a tenth or more is a group by itself, so of a constant feature both sides are groups of their own.
    """
    total = max(float(histogram.sum()), 1e-300)
    middle = (np.cumsum(histogram) - histogram / 2) / total
    found: NDArray[np.intp] = np.clip((middle * GROUPS).astype(np.intp), 0, GROUPS - 1)
    return found


@dataclass(frozen=True)
class Reference:
    """What live data are compared with, made of a profile once; all arrays are of its features, in its order.

    Attributes
    ----------
    counts
        [f, GROUPS + 1] the fleet's values by group, the last of them the missing ones.
    groups
        [f, bins + 2] the group of each bin.
    """

    profile: Profile
    bounds: Bounds
    counts: Doubles
    groups: NDArray[np.intp]

    @classmethod
    def of(cls, profile: Profile, manifest: Manifest) -> Reference:
        """Make it.

        Raises
        ------
        DataError
            If the profile is of other inputs than the model's, or has no histograms.
        """
        features = profile.features
        if tuple(feature.name for feature in features) != feature_names(manifest):
            raise DataError(f"profile of round {profile.round}: is of other inputs than model {manifest.name!r} has")
        widths = {len(feature.histogram) for feature in features}
        bounds = [feature.bounds for feature in features if feature.bounds is not None]
        if len(widths) != 1 or len(bounds) != len(features) or (wide := widths.pop()) < 3:
            raise DataError(
                f"profile of round {profile.round}: has no histograms; run another round of statistics, which takes its "
                "bounds from this one"
            )
        histogram = np.array([feature.histogram for feature in features])
        groups = np.array([groups_of(counts) for counts in histogram])
        low, high = np.array(bounds).T
        missing = np.array([feature.missing for feature in features])
        return cls(profile, Bounds(low, high, wide - 2), grouped(histogram, groups, missing), groups)

    def of_live(self, sums: FeatureSums) -> Doubles:
        """Return a device's values by group [f, GROUPS + 1]."""
        return grouped(sums.histogram, self.groups, sums.missing)


def grouped(histogram: Doubles, groups: NDArray[np.intp], missing: Doubles) -> Doubles:
    """Return counts by group [f, GROUPS + 1], the missing ones last.

    Parameters
    ----------
    histogram
        Counts [f, bins].
    groups
        The group [f, bins] of each bin.
    missing
        Counts [f].
    """
    features, row = len(histogram), GROUPS + 1
    places = groups + np.arange(features)[:, np.newaxis] * row
    counted = np.bincount(places.ravel(), weights=histogram.ravel(), minlength=features * row)
    found: Doubles = np.asarray(counted, np.float64).reshape(features, row)
    found[:, GROUPS] = missing
    return found


def quantile_distance(sums: FeatureSums, features: Sequence[Feature]) -> float:
    """Return how far a quantile of some feature lies from the fleet's at most, in the fleet's standard deviations.

    Quantiles are the profile's shares, each known to within a bin (`FeatureSums.quantile`).
    """
    worst = 0.0
    for at, feature in enumerate(features):
        spread = (feature.variance or 0.0) ** 0.5
        for fleet in feature.quantiles:
            live = sums.quantile(at, fleet.share)
            if live is None or (apart := abs(live[0] - fleet.value)) <= live[1] + fleet.error:
                continue  # both may be the same value
            worst = max(worst, min(apart / spread, MOST_DISTANCE) if spread > 0 else MOST_DISTANCE)
    return worst


@dataclass(frozen=True)
class Scores:
    """The model's scores on live data by group, and the shares that are expected; both [groups]."""

    expected: Doubles
    found: Doubles


def compared(
    examples: Dataset,
    manifest: Manifest,
    reference: Reference,
    *,
    scored: Callable[[], Scores | None] = lambda: None,
    kept: Path | None = None,
    key: str = "",
) -> Drift:
    """Compare live data with the fleet's profile.

    Parameters
    ----------
    examples
        The device's live data, missing values as NaN.
    manifest
        Of the model whose inputs they are.
    reference
        The profile.
    scored
        Gives the model's scores on them; None where it has none.
    kept
        File that holds how the device's own data were when it first knew this profile; made by the first look at enough of them.
    key
        What the file is for: the profile's digest.

    Returns
    -------
    Drift
        The figures, as the heartbeat tells them.

    Raises
    ------
    DataError
        If the data do not fit the model.
    """
    sums = measured(examples, manifest, reference.bounds, inputs_alone=True)
    live, scores = reference.of_live(sums), scored()
    index = stability_index(reference.counts, live)
    changes: dict[str, float] = {}
    if kept is not None:
        changes = _changes(kept, key, live, scores, enough=sums.examples >= _LEAST_ROWS)
    worst = int(np.argmax(index))
    return Drift(
        profile=reference.profile.round,
        rows=int(sums.examples),
        inputs=float(index[worst]),
        feature=worst,
        distance=quantile_distance(sums, reference.profile.features),
        scores=None if scores is None else float(stability_index(scores.expected, scores.found)),
        **changes,
    )


def _changes(path: Path, key: str, live: Doubles, scores: Scores | None, *, enough: bool) -> dict[str, Any]:
    found = np.zeros(0) if scores is None else np.asarray(scores.found, np.float64)
    before = _read(path, key, live.shape, found.shape)
    if before is None:
        if not enough:
            return {}
        before = live, found
        tensors.save(path, {"live": live, "scores": found}, {"key": key})
    changes = {"inputs_change": float(stability_index(before[0], live).max())}
    return changes if scores is None else changes | {"scores_change": float(stability_index(before[1], found))}


def _read(path: Path, key: str, live: tuple[int, ...], scores: tuple[int, ...]) -> tuple[Doubles, Doubles] | None:
    """Return what was kept for this profile; None if nothing was, or it is damaged."""
    try:
        arrays, metadata = tensors.load(path, max_bytes=_MOST_BYTES)
        kept = arrays["live"], arrays["scores"]
    except (TensorFileError, KeyError):
        return None
    fits = (kept[0].shape, kept[1].shape) == (live, scores) and all(array.dtype == np.float64 for array in kept)
    # Of an older profile the groups are others.
    return (
        kept
        if fits and metadata.get("key") == key and np.isfinite(kept[0]).all() and np.isfinite(kept[1]).all()
        else None
    )
