"""The job of a round of statistics: the devices' files to the fleet's profile, without a model."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.data.arrays import ArrayDataset
from fedgrass.profile.features import feature_names, measured
from fedgrass.profile.files import CODEC, Layout, encode
from fedgrass.protocol.names import model_prefix
from fedgrass.protocol.profile import Profile, StatisticsTask, profile_key
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_state
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, header

KEY = profile_key(FLEET, ROUND)


def statistics(**wanted: Any) -> FleetSettings:
    return FleetSettings().overridden({"task": "statistics", "statistics": wanted})


def data_of(fleet: Fleet, seed: int, factor: float = 1.0) -> ArrayDataset:
    generator = np.random.default_rng(seed)
    shape = fleet.base.manifest.x.shape
    x = generator.uniform(0, 1, size=(60 + 10 * seed, *shape)).astype(np.float32) * np.float32(factor)
    return ArrayDataset(x, generator.integers(0, 10, len(x)).astype(np.int32))


def put(fleet: Fleet, thing: str, data: ArrayDataset, task: StatisticsTask | None = None, **changes: Any) -> None:
    manifest = fleet.base.manifest
    layout = Layout.of(manifest, task or StatisticsTask(), None)
    sums = measured(data, manifest, layout.bounds)
    fields = {"num_examples": len(data), "codec": CODEC, "metrics": {}, **changes}
    arrays, metadata = encode(sums, header(fleet.base, thing, **fields), layout)
    fleet.put(thing, b"".join(tensors.encode(arrays, metadata)))


def profile(fleet: Fleet, report: RoundReport) -> Profile:
    content = fleet.object(KEY)
    assert content is not None
    assert report.profile is not None
    assert (report.profile.key, report.profile.sha256) == (KEY, hashlib.sha256(content).hexdigest())
    return Profile.read(content, name=KEY)


def test_the_profile_is_that_of_all_data_in_one_place(fleet: Fleet) -> None:
    fleet.settings = statistics(low=0.0, high=1.0, bins=16)
    task = StatisticsTask(low=0.0, high=1.0, bins=16)
    everything = [data_of(fleet, seed) for seed in range(6)]
    for seed, data in enumerate(everything):
        put(fleet, f"press-{seed}", data, task)
    report = fleet.run()
    assert (report.outcome, report.model, report.quarantined) == ("profiled", None, ())
    assert sum(entry.weight for entry in report.updates) == pytest.approx(1)
    found = profile(fleet, report)
    assert (found.devices, found.left_out, found.misfits) == (6, 0, ())
    pooled = np.concatenate([data.x for data in everything]).reshape(-1, 64).astype(np.float64)
    assert found.examples == len(pooled)
    for at, feature in enumerate(found.features):
        column = pooled[:, at]
        assert feature.name == feature_names(fleet.base.manifest)[at]
        assert feature.mean == pytest.approx(column.mean(), rel=1e-12)
        assert feature.variance == pytest.approx(column.var(), rel=1e-10)
        assert (feature.low, feature.high) == (column.min(), column.max())
        assert feature.histogram[1:-1] == tuple(np.histogram(column, 16, (0, 1))[0])
        for one in feature.quantiles:
            true = np.quantile(column, one.share, method="inverted_cdf")
            assert abs(one.value - true) <= one.error <= 1.001 / 16
    labels = np.concatenate([data.y for data in everything])
    assert [label.count for label in found.labels] == np.bincount(labels, minlength=10).tolist()


def test_nothing_is_released_and_the_record_names_the_profile(fleet: Fleet) -> None:
    fleet.settings = statistics()
    for seed in range(3):
        put(fleet, f"press-{seed}", data_of(fleet, seed))
    report = fleet.run()
    record, state = load_round(fleet.clients.rounds, FLEET, ROUND), load_state(fleet.clients.rounds, FLEET)
    assert (record.outcome, record.profile, record.participants) == ("profiled", report.profile, 3)
    assert state.profile == report.profile
    assert fleet.keys(model_prefix(FLEET, f"1.{ROUND}.0")) == set()
    assert fleet.greengrass.components == {}
    assert fleet.run() == report


def test_the_next_round_has_its_bounds_from_the_profile_before(fleet: Fleet) -> None:
    fleet.settings = statistics()
    for seed in range(3):
        put(fleet, f"press-{seed}", data_of(fleet, seed))
    first = profile(fleet, fleet.run())
    assert all(feature.bounds is None and not feature.quantiles for feature in first.features)
    layout = Layout.of(fleet.base.manifest, StatisticsTask(), first)
    assert layout.bounds is not None
    assert layout.bounds.low.tolist() == [feature.low for feature in first.features]


def test_what_cannot_be_is_quarantined_and_others_count(fleet: Fleet) -> None:
    fleet.settings = statistics()
    for seed in range(3):
        put(fleet, f"press-{seed}", data_of(fleet, seed))
    put(fleet, "liar", data_of(fleet, 1), num_examples=5)
    put(fleet, "stranger", data_of(fleet, 1), round=ROUND + 1)
    fleet.put_update("trained", 1)
    fleet.put("noise", b"\0" * 100)
    report = fleet.run()
    reasons = {entry.thing: entry.reason for entry in report.quarantined}
    assert reasons["liar"] == "corrupt_data"
    assert reasons["stranger"] == "wrong_round"
    assert reasons["trained"] in {"too_large", "corrupt_header", "unknown_codec"}
    assert set(reasons) == {"liar", "stranger", "trained", "noise"}
    assert profile(fleet, report).devices == 3


def test_a_device_with_another_unit_is_named_and_weighs_nothing(fleet: Fleet) -> None:
    fleet.settings = statistics()
    for seed in range(6):
        put(fleet, f"press-{seed}", data_of(fleet, seed, 1000.0 if seed == 2 else 1.0))
    report = fleet.run()
    found = profile(fleet, report)
    assert {misfit.thing for misfit in found.misfits} == {"press-2"}
    assert (found.left_out, found.devices) == (1, 5)
    assert {entry.thing: entry.weight for entry in report.updates}["press-2"] == 0
    assert max(feature.high or 0 for feature in found.features) <= 1
    assert "1 devices have features that do not fit" in report.reason


def test_too_few_files_make_no_profile(fleet: Fleet) -> None:
    fleet.settings = statistics()
    put(fleet, "press-0", data_of(fleet, 0))
    report = fleet.run()
    assert (report.outcome, report.profile, fleet.object(KEY)) == ("insufficient_updates", None, None)
