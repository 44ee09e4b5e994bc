"""A round of statistics beside all data in one place: the error of each quantity, bytes, seconds and memory.

``python -m benchmarks.statistics`` has 1,000 virtual devices measure 10,000 rows of 100 features each, in two rounds as a fleet
does (the first gives the histograms' bounds), and the round's job make the profile of their files, in a process of its own. The
reference is NumPy over the pooled rows, made again from their seeds: sums in extended precision, `numpy.histogram`, and order
statistics of some features' sorted values. ``floor`` is NumPy's time for one device's mean, variance, minimum, maximum and
histograms with the rows in memory. Features differ in scale from 1e-4 to 1e6, devices in their means, and a hundredth is missing.
One JSON line; about four processor minutes at the default size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.profiling import Collected, make_profile
from fedgrass.cloud.aggregator.sources import Folder
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.data.arrays import ArrayDataset
from fedgrass.data.digits import digits_bundle
from fedgrass.interface import TensorDescription
from fedgrass.profile.device import measure
from fedgrass.profile.files import Layout
from fedgrass.protocol.messages import Announcement, Base, Cohort, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.protocol.profile import Profile, StatisticsTask
from fedgrass.protocol.settings import FleetSettings

Doubles = NDArray[np.float64]

FLEET = "benchmark"
_OPENED = datetime(2026, 1, 1, tzinfo=timezone.utc)
_LABELS = 10
_MISSING = 0.01
_SORTED = 3
"""Features whose quantiles are compared: their values are held and sorted."""


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    bundle = _bundle(args.features)
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as scratch:
        rounds: list[dict[str, Any]] = []
        profile: Profile | None = None
        for number in (1, 2):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            seconds = _measured(bundle, args.devices, args.rows, folder, number, profile)
            size = max(path.stat().st_size for path in folder.iterdir())
            job, profile = _in_a_process(bundle, folder, number, profile)
            rounds.append({"device_seconds": seconds, "device_bytes": size, **job})
    assert profile is not None
    found = {
        "devices": args.devices,
        "features": args.features,
        "rows": args.rows,
        "rounds": rounds,
        "floor_device_seconds": _floor(args.features, args.rows, profile),
        "errors": _errors(profile, args.devices, args.rows),
        "left_out": profile.left_out,
        "misfits": len(profile.misfits),
    }
    print(json.dumps(found))


def rows_of(device: int, features: int, rows: int) -> Doubles:
    """Return a device's rows [rows, features]; the same ones each time, as float32 holds them."""
    generator = np.random.default_rng((7, device))
    scale = np.logspace(-4, 6, features)
    shift = generator.normal(size=features)
    x = generator.standard_normal((rows, features)) + 3 + shift
    # Every third feature has a long tail, so that bins are filled unevenly.
    x[:, ::3] = np.exp(x[:, ::3] / 4)
    x = (x * scale).astype(np.float32)
    x[generator.random((rows, features)) < _MISSING] = np.nan
    found: Doubles = x.astype(np.float64)
    return found


def labels_of(device: int, rows: int) -> NDArray[np.int32]:
    """Return a device's labels: two of the ten for most of its rows."""
    generator = np.random.default_rng((8, device))
    odd = generator.integers(0, _LABELS, rows)
    found: NDArray[np.int32] = np.where(generator.random(rows) < 0.8, (device + odd % 2) % _LABELS, odd).astype(
        np.int32
    )
    return found


def _bundle(features: int) -> Bundle:
    # Statistics need a model's description alone: what its input and labels are.
    bundle = Bundle.open(digits_bundle())
    x = TensorDescription(name="x", shape=(features,), dtype="float32")
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"x": x}))


def _announced(bundle: Bundle, number: int) -> Announcement:
    return Announcement(
        fleet=FLEET,
        round=number,
        task="statistics",
        opened_at=_OPENED,
        deadline=_OPENED + timedelta(hours=1),
        base=Base.of(bundle.manifest, FLEET),
        cohort=Cohort(salt="statistics"),
        statistics=StatisticsTask(),
        upload=Upload(bucket=FLEET, prefix=update_prefix(FLEET, number)),
    )


def _measured(bundle: Bundle, devices: int, rows: int, folder: Path, number: int, earlier: Profile | None) -> float:
    """Write each device's file; returns a device's median processor seconds."""
    seconds, features = [], bundle.manifest.x.size
    for device in range(devices):
        thing = f"device-{device:06d}"
        x = rows_of(device, features, rows).astype(np.float32)
        examples = ArrayDataset(x, labels_of(device, rows))
        began = time.process_time()
        measure(examples, bundle.manifest, _announced(bundle, number), thing, folder / f"{thing}.safetensors", earlier)
        seconds.append(time.process_time() - began)
    return round(float(np.median(seconds)), 4)


def _in_a_process(bundle: Bundle, folder: Path, number: int, earlier: Profile | None) -> tuple[dict[str, Any], Profile]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, memory, content = pool.apply(_job, (bundle.manifest.x.size, folder, number, earlier))
    return {"job_seconds": seconds, "job_peak_mb": memory}, Profile.read(content, name="profile")


def _job(features: int, folder: Path, number: int, earlier: Profile | None) -> tuple[float, float, bytes]:
    bundle, settings = _bundle(features), FleetSettings()
    manifest = bundle.manifest
    began = time.process_time()
    expected = Expected(
        base_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
        fleet=FLEET,
        round=number,
        checks=settings.checks,
    )
    source = Folder(folder)
    files = Collected.of(bundle, source, source.list(), Layout.of(manifest, StatisticsTask(), earlier), expected)
    profile, _ = make_profile(files, bundle, settings.statistics, fleet=FLEET, number=number, made_at=_OPENED)
    seconds, most = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(seconds, 3), round(most / 1024, 1), profile.to_json()


def _floor(features: int, rows: int, profile: Profile) -> float:
    x = rows_of(0, features, rows)
    began = time.process_time()
    np.nanmean(x, axis=0), np.nanvar(x, axis=0), np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    for column, feature in zip(x.T, profile.features, strict=True):
        np.histogram(column[np.isfinite(column)], bins=len(feature.histogram) - 2, range=feature.bounds)
    return round(time.process_time() - began, 4)


def _errors(profile: Profile, devices: int, rows: int) -> dict[str, float]:
    """Return the largest error of each quantity: relative ones of mean (to the deviation) and variance, counts as they are."""
    features = len(profile.features)

    def every() -> Iterator[Doubles]:
        return (rows_of(device, features, rows) for device in range(devices))

    bins = len(profile.features[0].histogram) - 2
    edges = [np.linspace(*(feature.bounds or (0.0, 1.0)), bins + 1) for feature in profile.features]
    count, total = np.zeros(features), np.zeros(features, np.longdouble)
    low, high = np.full(features, np.inf), np.full(features, -np.inf)
    histogram = np.zeros((features, bins))
    kept: list[list[Doubles]] = [[] for _ in range(_SORTED)]
    for x in every():
        there = np.isfinite(x)
        count += there.sum(axis=0)
        total += np.where(there, x, 0).sum(axis=0, dtype=np.longdouble)
        low, high = np.fmin(low, np.nanmin(x, axis=0)), np.fmax(high, np.nanmax(x, axis=0))
        for at, column in enumerate(x.T):
            values = column[there[:, at]]
            histogram[at] += np.histogram(values, bins=edges[at])[0]
            if at < _SORTED:
                kept[at].append(values)
    mean = total / count
    squares = np.zeros(features, np.longdouble)
    for x in every():
        squares += np.square(np.where(np.isfinite(x), x - mean, 0)).sum(axis=0, dtype=np.longdouble)
    variance = squares / count
    found = {
        name: np.array([getattr(feature, name) for feature in profile.features], np.float64)
        for name in ("count", "missing", "mean", "variance", "low", "high")
    }
    labels = sum(np.bincount(labels_of(device, rows), minlength=_LABELS) for device in range(devices))
    told = np.array([feature.histogram for feature in profile.features])
    return {
        "count": float(np.abs(found["count"] - count).max()),
        "missing": float(np.abs(found["missing"] - (devices * rows - count)).max()),
        "labels": float(np.abs(np.array([label.count for label in profile.labels]) - labels).max()),
        "mean_over_deviation": float((np.abs(found["mean"] - mean) / np.sqrt(variance)).max()),
        "variance_relative": float((np.abs(found["variance"] - variance) / variance).max()),
        "minimum": float(np.abs(found["low"] - low).max()),
        "maximum": float(np.abs(found["high"] - high).max()),
        # A value on an edge may fall on either side by rounding.
        "histogram_moved_share": float((np.abs(told[:, 1:-1] - histogram).sum(axis=1) / 2 / count).max()),
        "outside_bounds": float(told[:, [0, -1]].max()),
        **_quantiles(profile, kept),
    }


def _quantiles(profile: Profile, kept: list[list[Doubles]]) -> dict[str, float]:
    """Return the worst error over that told (1 or less is right), and the worst told, as a share of the range."""
    over, told = 0.0, 0.0
    for feature, parts in zip(profile.features, kept, strict=False):
        values = np.concatenate(parts)
        shares = [quantile.share for quantile in feature.quantiles]
        wide = float(values.max() - values.min())
        right = np.quantile(values, shares, method="inverted_cdf")
        for quantile, value in zip(feature.quantiles, right.tolist(), strict=True):
            over = max(over, abs(quantile.value - value) / quantile.error)
            told = max(told, quantile.error / wide)
    return {"quantile_over_told_error": round(over, 4), "quantile_told_error_of_range": round(told, 5)}


if __name__ == "__main__":
    main()
