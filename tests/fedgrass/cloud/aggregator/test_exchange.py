"""A job of several instances."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.cloud.aggregator.exchange import BucketPartialSums
from fedgrass.cloud.aggregator.lanes import LANES, lane_of, lanes_of
from fedgrass.errors import AggregationError
from fedgrass.protocol.names import model_prefix, partial_prefix, report_key, report_prefix
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet

THINGS = [f"press-{i:02d}" for i in range(24)]


def collected(fleet: Fleet) -> None:
    """Two dozen good updates in most of the lanes, and bad ones among them."""
    for seed, thing in enumerate(THINGS):
        fleet.put_update(thing, seed, num_examples=1 + seed)
    fleet.put("press-nan", fleet.put_update("press-nan", 99)[:-4] + struct.pack("<f", float("nan")))
    fleet.put("press-junk", b"no update")


def start_over(fleet: Fleet) -> None:
    prefixes = (report_prefix(FLEET, ROUND), partial_prefix(FLEET, ROUND), model_prefix(FLEET, f"1.{ROUND}.0"))
    for key in {key for prefix in prefixes for key in fleet.keys(prefix)}:
        fleet.s3.delete_object(Bucket="fedgrass-test", Key=key)
    fleet.greengrass.components.clear()


def run(fleet: Fleet, instances: int) -> Any:
    with ThreadPoolExecutor(instances) as pool:
        others = [pool.submit(fleet.contribute, index, instances) for index in range(1, instances)]
        report = fleet.run(instances=instances)
        for other in others:
            other.result()
    return report


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy": {"name": "fedadam", "options": {"clip": {"over_median": 0.9}}}},
        {"checks": {"max_norm_over_median": 1.0005}},
        {"strategy": {"name": "median"}},
    ],
    ids=["fedavg", "clipped", "norms_compared", "robust"],
)
def test_the_model_and_its_report_are_the_same_for_any_number_of_instances(
    fleet: Fleet, settings: dict[str, Any]
) -> None:
    fleet.settings = FleetSettings.model_validate(settings)
    collected(fleet)
    reports = []
    for instances in (1, 2, 4):
        reports.append(run(fleet, instances))
        assert not fleet.keys("partial/")
        start_over(fleet)
    first = reports[0]
    assert first.outcome == "released"
    assert {q.thing for q in first.quarantined} >= {"press-nan", "press-junk"}
    assert len({lane_of(u.thing) for u in first.updates}) >= LANES / 2
    for report in reports[1:]:
        assert report.model == first.model
        assert report.updates == first.updates
        assert report.quarantined == first.quarantined
        assert report.server_state_sha256 == first.server_state_sha256


def test_lanes_are_shared_out_whole() -> None:
    for instances in (1, 2, 3, 4, 7, 16, 20, 100):
        owned = [lane for index in range(instances) for lane in lanes_of(index, instances)]
        assert owned == list(range(LANES))


def test_an_instance_that_died_fails_the_job_and_starting_it_again_gives_the_same(fleet: Fleet) -> None:
    collected(fleet)
    whole = run(fleet, 1)
    start_over(fleet)
    with pytest.raises(AggregationError, match="another instance"):
        fleet.contribute(1, 3, patience=0.0)  # the third never lives
    with pytest.raises(AggregationError, match="another instance"):
        fleet.run(instances=3, patience=0.0)
    assert not fleet.keys(model_prefix(FLEET, f"1.{ROUND}.0"))
    assert not fleet.greengrass.components
    assert run(fleet, 2).model == whole.model


def test_more_instances_than_lanes_leave_nothing_and_nobody_waits_for_those_without(fleet: Fleet) -> None:
    collected(fleet)
    fleet.settings = FleetSettings.model_validate({"checks": {"max_norm_over_median": 1.5}})
    assert run(fleet, LANES + 2).outcome == "released"
    assert not fleet.keys("partial/")


def test_a_job_that_was_killed_before_it_cleaned_up_does_so_when_it_is_run_again(fleet: Fleet) -> None:
    collected(fleet)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(fleet.contribute, 1, 2)
        fleet.run(instances=2)
        other.result()
    left = partial_prefix(FLEET, ROUND) + "0123456789abcdef/sum-00.bin"
    fleet.s3.put_object(Bucket="fedgrass-test", Key=left, Body=b"x")
    fleet.contribute(1, 2, patience=0.0)  # the round has its report: there is nothing to wait for
    fleet.run(instances=2)
    assert not fleet.keys("partial/")
    fleet.s3.delete_object(Bucket="fedgrass-test", Key=report_key(FLEET, ROUND))
    fleet.contribute(1, 2, patience=0.0)  # nor where there is a proposal


def test_waiting_ends_at_the_deadline(fleet: Fleet, tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    share = BucketPartialSums(
        0, 2, fleet.clients.bucket, "parts/", tmp_path, patience=30.0, sleep=sleep, clock=lambda: now[0]
    )
    with pytest.raises(AggregationError, match="in time"):
        share.add(9, np.zeros(3))
    assert 30 < now[0] < 40
