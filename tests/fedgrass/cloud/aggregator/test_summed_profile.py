"""Rounds of statistics under noise and masks: real device files, the job, and pooled NumPy within the error told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.cloud.aggregator import helpers as module
from fedgrass.cloud.ending.announcement import task_of
from fedgrass.data.arrays import ArrayDataset
from fedgrass.errors import ConfigurationError
from fedgrass.profile.device import measure
from fedgrass.profile.features import bounds_of
from fedgrass.profile.summed import TENSOR, SummedLayout, vector_of
from fedgrass.protocol.exposure import against_round
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.profile import Profile, StatisticsTask
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, Fleet, make_record
from tests.fedgrass.cloud.aggregator.test_profile_job import data_of, profile
from tests.fedgrass.cloud.aggregator.test_secure_job import HelperDevices

BINS = 8
DEVICES = 12


def settings_of(**changes: Any) -> FleetSettings:
    wanted = {"low": 0.0, "high": 1.0, "bins": BINS, "max_rows": 200}
    return FleetSettings().overridden({"task": "statistics", "statistics": wanted, **changes})


def announced(fleet: Fleet) -> Announcement:
    return task_of(make_record(FLEET, fleet.current, fleet.settings), "fedgrass-test")


def send(fleet: Fleet, folder: Path, devices: int = DEVICES) -> list[ArrayDataset]:
    """Have devices measure and upload; returns their data."""
    everything = [data_of(fleet, seed) for seed in range(devices)]
    for seed, data in enumerate(everything):
        thing, path = f"press-{seed:02d}", folder / f"{seed}.safetensors"
        measure(data, fleet.base.manifest, announced(fleet), thing, path, keys=folder / "keys" / thing)
        fleet.put(thing, path.read_bytes())
    return everything


def compare(found: Profile, everything: list[ArrayDataset]) -> None:
    """Hold a profile against all data in one place (NumPy), within what it says of its own error."""
    pooled = np.concatenate([data.x for data in everything]).reshape(-1, 64).astype(np.float64)
    labels = np.bincount(np.concatenate([data.y for data in everything]), minlength=10)
    assert found.noise is not None
    # Over a thousand counts are looked at: five deviations for all of them to hold.
    most = 5 * found.noise + 1e-3
    for at, feature in enumerate(found.features):
        column = pooled[:, at]
        histogram = np.array([0, *np.histogram(column, BINS, (0, 1))[0], 0])
        assert np.abs(np.array(feature.histogram) - histogram).max() <= most
        assert abs(feature.count - len(column)) <= most * math.sqrt(BINS + 2)
        assert feature.missing <= most
        assert (feature.low, feature.high) == (None, None)
        if feature.mean is None:
            continue
        assert feature.mean_error is not None
        assert feature.variance is not None
        assert feature.variance_error is not None
        assert abs(feature.mean - column.mean()) <= 5 / 3 * feature.mean_error + 1e-6
        assert abs(feature.variance - column.var()) <= 5 / 3 * feature.variance_error + 1e-6
        for one in feature.quantiles:
            assert abs(one.value - np.quantile(column, one.share, method="inverted_cdf")) <= one.error
    assert np.abs(np.array([label.count for label in found.labels]) - labels).max() <= most


@pytest.mark.parametrize("mode", ["central", "local"])
def test_with_noise_the_profile_is_that_of_all_data_within_the_error_told(
    fleet: Fleet, tmp_path: Path, mode: str
) -> None:
    fleet.settings = settings_of(privacy={"mode": mode, "noise_multiplier": 0.01, "clip_norm": 3.0})
    everything = send(fleet, tmp_path)
    report = fleet.run()
    assert (report.outcome, report.quarantined) == ("profiled", ())
    found = profile(fleet, report)
    assert (found.devices, found.left_out) == (DEVICES, 0)
    # The bound by hand: 64 features of 200 rows, three sums each, and one label an example.
    longest = 200 * math.sqrt(3 * 64 + 1)
    parts = math.sqrt(DEVICES) if mode == "local" else 1
    assert found.noise == pytest.approx(0.01 * longest * parts, rel=1e-3)
    compare(found, everything)
    assert all(entry.num_examples == 1 for entry in report.updates)
    assert "noise of deviation" in report.reason


def test_the_noise_is_there_and_as_large_as_it_says(fleet: Fleet, tmp_path: Path) -> None:
    fleet.settings = settings_of(privacy={"mode": "central", "noise_multiplier": 0.5})
    everything = send(fleet, tmp_path)
    found = profile(fleet, fleet.run())
    # A histogram's places outside of the bounds and what is missing hold noise alone; below zero it was cut off.
    alone = np.array([(f.histogram[0], f.histogram[-1], f.missing) for f in found.features]).ravel()
    assert found.noise is not None
    assert np.sqrt(np.square(alone).mean()) == pytest.approx(found.noise / math.sqrt(2), rel=0.3)
    # So much noise that nothing is known of a mean: none is told, rather than a wrong one.
    assert sum(len(data) for data in everything) < 3 * found.noise * math.sqrt(BINS + 2)
    assert all(feature.mean is None and not feature.quantiles for feature in found.features)


@pytest.fixture
def helpers(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    found = HelperDevices(fleet, tmp_path)
    publisher: Any = found
    fleet.clients = replace(fleet.clients, iot_data=publisher)
    return {
        "helpers": [{"name": name, "key": helper.public_key} for name, helper in found.helpers.items()],
        "helper_seconds": 1,
    }


@pytest.mark.parametrize(
    ("secure", "privacy"),
    [
        ({}, {}),
        ({"bits": 16}, {}),
        ({}, {"mode": "distributed", "noise_multiplier": 0.01}),
        ({}, {"mode": "central", "noise_multiplier": 0.01}),
    ],
)
def test_under_masks_the_cloud_has_the_sum_alone_and_it_is_right(
    fleet: Fleet, tmp_path: Path, helpers: dict[str, Any], secure: dict[str, Any], privacy: dict[str, Any]
) -> None:
    fleet.settings = settings_of(secure={**helpers, "most": DEVICES, **secure}, privacy=privacy)
    everything = send(fleet, tmp_path)
    report = fleet.run()
    assert (report.outcome, report.reason.split(";")[0].split(" of ")[0]) == ("profiled", "64 features")
    assert report.quarantined == ()
    found = profile(fleet, report)
    assert found.noise is not None
    if not privacy and not secure:
        assert found.noise < 0.01  # rounding alone
    compare(found, everything)


def test_a_device_tells_of_max_rows_at_most_and_its_vector_is_never_longer_than_the_bound(fleet: Fleet) -> None:
    manifest = fleet.base.manifest
    rng = np.random.default_rng(1)
    for values in (
        np.zeros,
        np.ones,
        lambda shape: np.full(shape, np.nan),
        rng.random,
        lambda shape: np.full(shape, 1e9),
    ):
        for clip in (1.0, 7.5):
            fleet.settings = settings_of(privacy={"mode": "central", "clip_norm": clip})
            told = announced(fleet)
            layout = SummedLayout.of(manifest, told, bounds_of(told.statistics or StatisticsTask(), manifest, None))
            data = ArrayDataset(values((333, *manifest.x.shape)), np.full(333, 3, np.int32))
            vector, count = vector_of(data, manifest, layout)
            assert count == 200
            assert np.linalg.norm(vector.astype(np.float64)) <= clip
            assert vector.sum() > 0


def test_a_local_devices_file_has_noise_on_it_and_no_count_beside_it(fleet: Fleet, tmp_path: Path) -> None:
    fleet.settings = settings_of(privacy={"mode": "local", "noise_multiplier": 1.0})
    told, path = announced(fleet), tmp_path / "update"
    assert told.update.noise_multiplier == 1.0
    found = measure(data_of(fleet, 1), fleet.base.manifest, told, "press", path)
    arrays, metadata = tensors.load(path)
    assert arrays[TENSOR].std() == pytest.approx(1.0, rel=0.2)
    assert metadata["num_examples"] == "1"
    assert found.answer.num_examples == 1


def test_a_vector_that_lies_cannot_count_for_more_than_the_bound(fleet: Fleet, tmp_path: Path) -> None:
    fleet.settings = settings_of(privacy={"mode": "central", "noise_multiplier": 0.01})
    everything = send(fleet, tmp_path, 6)
    liar = tmp_path / "0.safetensors"
    arrays, metadata = tensors.load(liar)
    arrays[TENSOR] *= 1e6
    fleet.put("press-00", b"".join(tensors.encode(arrays, metadata)))
    fleet.put("press-01", b"\0" * 50)
    report = fleet.run()
    assert {entry.thing for entry in report.quarantined} == {"press-01"}
    found = profile(fleet, report)
    assert found.noise is not None
    honest = sum(len(data) for data in everything[2:])
    # 200 rows of 64 features, three sums each, all spent on one feature's one bin at the very most.
    assert found.features[0].count <= honest + 200 * math.sqrt(3 * 64 + 1) + 5 * found.noise * math.sqrt(BINS + 2)


def test_the_next_profile_under_noise_has_the_bounds_of_the_one_before(fleet: Fleet, tmp_path: Path) -> None:
    fleet.settings = settings_of(privacy={"mode": "central", "noise_multiplier": 0.05})
    send(fleet, tmp_path)
    found = profile(fleet, fleet.run())
    bounds = bounds_of(StatisticsTask(bins=4), fleet.base.manifest, found)
    assert bounds is not None
    assert (set(bounds.low), set(bounds.high)) == ({0.0}, {1.0})


def test_too_few_devices_make_no_profile_and_a_spent_budget_none(fleet: Fleet, tmp_path: Path) -> None:
    fleet.settings = settings_of(privacy={"mode": "central"})
    send(fleet, tmp_path, 1)
    report = fleet.run()
    assert (report.outcome, report.profile) == ("insufficient_updates", None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"privacy": {"mode": "central", "adaptive_clip": {}}}, "privacy.adaptive_clip"),
        ({"update": {"figures": "left_out"}}, "update.figures"),
        ({"privacy": {"mode": "distributed"}}, "privacy.mode distributed"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        settings_of(**changes)


def test_owners_who_want_noise_take_part_where_it_is_on_the_device_and_the_account_counts_it(fleet: Fleet) -> None:
    fleet.settings = settings_of(privacy={"mode": "local", "noise_multiplier": 2.0})
    assert against_round(announced(fleet), least=2.0) == ""
    assert "minNoiseMultiplier" in against_round(announced(fleet), least=2.5)
    assert "secureHelpers" in against_round(announced(fleet), least=0.0, helpers=["key"])
    fleet.settings = settings_of(privacy={"mode": "central", "noise_multiplier": 2.0})
    assert "minNoiseMultiplier" in against_round(announced(fleet), least=0.1)  # the aggregator's shows nobody
