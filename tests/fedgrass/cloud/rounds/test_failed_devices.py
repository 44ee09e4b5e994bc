"""Why devices sent nothing, as a round's strategy is told."""

from __future__ import annotations

from typing import Any

from fedgrass.cloud.aggregator.failed_devices import failures_of, number_of
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from tests.fedgrass.cloud.rounds.harness import Fleet, FleetFactory


def test_failed_declined_and_silent_devices_are_failures_and_late_ones_change_nothing(make_fleet: FleetFactory) -> None:
    fleet: Fleet = make_fleet()
    fleet.heartbeats("a", "b", "c", "d", "e")
    fleet.open()
    fleet.heartbeats("f")  # nobody asked it
    for thing, status in (("a", "uploaded"), ("b", "uploaded"), ("c", "failed"), ("d", "declined"), ("f", "failed")):
        more: dict[str, Any] = (
            {} if status == "uploaded" else {"key": None, "sha256": None, "bytes": 0, "reason": "no memory"}
        )
        record_update(fleet.services, fleet.update(thing, status=status, **more))
    told = ["c failed: no memory", "d declined: no memory", "a device that was asked sent nothing in time"]
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    assert failures_of(fleet.rounds, fleet.round()) == told
    record_update(fleet.services, fleet.update("e", status="failed", key=None, sha256=None, bytes=0, reason="late"))
    assert failures_of(fleet.rounds, fleet.round()) == told


def test_a_strategy_counts_as_the_app_does_that_drives_the_fleet(fleet: Fleet) -> None:
    assert number_of(fleet.open()) == 1
    fleet.step_functions.statuses.clear()
    assert number_of(fleet.open("arn:two", fit={"config": {"server_round": 7}})) == 7
