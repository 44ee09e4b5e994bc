"""A fleet's profile put into a model: the mean and variance by which it normalizes its input, and what fills missing values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fedgrass.bundle import Bundle, Manifest, Parameters
from fedgrass.errors import DataError
from fedgrass.inference import write_bundle
from fedgrass.profile.features import feature_names
from fedgrass.profile.sums import ROUNDING
from fedgrass.protocol.profile import Feature, Profile
from fedgrass.statistics import statistics_of
from fedgrass.tensors import Array


def adapt(bundle: Bundle, profile: Profile, folder: Path, *, version: str = "") -> Bundle:
    """Write a bundle whose input is normalized as the whole fleet's data are.

    A model that begins with ``keras.layers.Normalization`` gets its mean and variance from the profile, without TensorFlow; all
    else stays. Missing values that devices fill in (`missing: mean`) are the fleet's means then. No data leave a device for it.

    Parameters
    ----------
    bundle
        The model; what it was normalized by before does not matter.
    profile
        Of a round of statistics on a model with the same inputs.
    folder
        Made if absent; a bundle in it is replaced.
    version
        Of the new bundle; the next major one if not given, since trained weights fit another scale.

    Returns
    -------
    Bundle
        The new one.

    Raises
    ------
    DataError
        If the profile is of other inputs, or has no values of a feature; or the model normalizes nothing.
    BundleError
        If the new bundle cannot be written.

    Examples
    --------
    >>> import fedgrass, keras
    >>> layers = [keras.Input((2,)), keras.layers.Normalization(), keras.layers.Dense(1)]
    >>> bundle = fedgrass.export(keras.Sequential(layers), Path("raw"), loss="mse", batch_size=8, prove=False)
    >>> import numpy as np
    >>> np.savez("rows.npz", x=np.float32([[1000, 0.001], [3000, 0.003]] * 20), y=np.zeros((40, 1), np.float32))
    >>> fleet = {"data": "rows.npz", "partition": "iid", "devices": 2, "examples": 20}
    >>> profile = fedgrass.simulate_profile(bundle.folder, Path("rows.json"), **fleet)
    >>> scaled = fedgrass.adapt(bundle, profile, Path("scaled"))
    >>> scaled.manifest.version, scaled.manifest.fixed
    ('2.0.0', ('normalization/mean', 'normalization/variance'))
    """
    manifest, names = bundle.manifest, tuple(feature.name for feature in profile.features)
    if names != (expected := feature_names(manifest)):
        at = next((i for i, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), 0)
        raise DataError(
            f"profile of round {profile.round}: its features are not the input of model {manifest.name!r} "
            f"({len(names)} to {len(expected)}; number {at + 1} is {names[at]!r}, not {expected[at]!r}). Take a profile of this "
            "model: `fedgrass round start --task statistics`"
        )
    # A feature without a value has no mean: the model would be given a made-up one.
    empty = [feature.name for feature in profile.features if feature.mean is None]
    if empty:
        if profile.noise is not None:
            raise DataError(
                f"profile of round {profile.round}: its noise hides the mean of {', '.join(empty[:5])}; take one with less "
                "noise, a smaller statistics.max_rows, or more devices"
            )
        raise DataError(
            f"profile of round {profile.round}: no device has a value of {', '.join(empty[:5])}, so nothing is known of its scale"
        )
    parameters = {**bundle.parameters(), **_normalization(manifest, profile)}
    # Only where each value of x is a feature of its own; of an image the profile has one mean for all pixels of a
    # channel.
    if len(profile.features) == manifest.x.size:
        means = tuple(feature.mean for feature in profile.features)
        manifest = manifest.model_copy(update={"data": manifest.data.model_copy(update={"means": means})})
    following = version or f"{int(manifest.version.split('.', 1)[0]) + 1}.0.0"
    return write_bundle(Bundle(bundle.folder, manifest), parameters, folder, version=following)


def _normalization(manifest: Manifest, profile: Profile) -> Parameters:
    """Return the values of the parameters by which a model normalizes its input."""
    if not manifest.fixed:
        raise DataError(
            f"model {manifest.name!r} does not normalize its input, so that a profile has no place in it. Let it begin with "
            "keras.layers.Normalization() and export it again; what `fedgrass model create` makes for tables and for classes of "
            "series begins with it"
        )
    kinds, parameters = statistics_of(manifest), {p.name: p for p in manifest.parameters}
    found: Parameters = {}
    for name in manifest.fixed:
        wanted = parameters[name]
        # The layer's mean and variance may have fewer values than the profile has features: one for each place of the
        # last axis.
        if len(profile.features) % max(1, wanted.size):
            raise DataError(f"{name!r} has {wanted.size} values, the profile {len(profile.features)} features")
        mean, variance = _pooled(profile.features, wanted.size)
        _require_held(variance, profile.features, name)
        found[name] = (mean if kinds[name] == "mean" else variance).reshape(wanted.shape).astype(wanted.dtype)
    return found


def _require_held(variance: Array, features: tuple[Feature, ...], name: str) -> None:
    """Raise `DataError` if a variance is infinite in the model's numbers: the layer would make 0 of all values."""
    most = float(np.finfo(np.float32).max)
    if (variance > most).any():
        at = int(np.argmax(variance > most))
        raise DataError(
            f"{name!r}: feature {features[at].name!r} has a deviation of {np.sqrt(variance[at]):.3g}; a model scales by "
            f"{math.sqrt(most):.2g} at most. Take another unit for it in the data loader, and another profile"
        )


def _pooled(features: tuple[Feature, ...], size: int) -> tuple[Array, Array]:
    """Return mean and variance [size] of features whose last axis has as many places: of all steps, or pixels, together."""
    count, mean, variance = (
        np.array([value or 0.0 for value in column], np.float64).reshape(-1, size)
        for column in zip(*((f.count, f.mean, f.variance) for f in features), strict=True)
    )
    # Weighed by counts, and the spread of the means on top: the variance of the whole is that within the parts and
    # that between them.
    share = count / np.maximum(count.sum(axis=0), 1)
    middle = (share * mean).sum(axis=0)
    spread = (share * (variance + np.square(mean - middle))).sum(axis=0)
    # A feature that is the same everywhere, but for float64's rounding, is left in its unit: the layer would divide what differs
    # one day by almost nothing.
    return middle, np.where(np.sqrt(spread) > ROUNDING * np.abs(middle), spread, 1.0)
