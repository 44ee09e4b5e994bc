"""Capabilities that change how rounds follow one another, whole: choosing by loss, a stream, and drift that starts rounds."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fedgrass.protocol import tables
from fedgrass.protocol.fleet_state import DriftRecord
from fedgrass.protocol.names import TRAINER
from fedgrass.protocol.records import RoundRecord
from tests.end_to_end.conftest import Operator
from tests.fixtures.waiting import eventually

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("fleet")]

STREAM = {
    "mode": "asynchronous",
    "buffer_size": 1,
    "min_devices": 1,
    "min_updates": 1,
    "strategy": {"name": "fedbuff", "options": {"staleness": 20}},
}
BY_LOSS = {"over_ask": 1, "by_loss": {"candidates": 2, "explore": 0}}
DRIFT = {
    "action": "round",
    "min_devices": 2,
    "share": 1,
    "looks": 1,
    "threshold": 0.01,
    "min_rows": 20,
    "renew_profile": False,
}


def test_one_fleet_chooses_by_loss_streams_and_acts_on_drift(operator: Operator) -> None:
    with operator.settings(drift=DRIFT):
        assert operator.run_round(task="statistics", statistics={"low": 0, "high": 1}).outcome == "profiled"
        # The next announcement tells devices of the profile; they compare when they have time.
        the_device_of_the_highest_loss_is_asked_after_a_restart(operator)
        a_late_update_counts_once_in_a_stream(operator)
        drift_evaluates_and_then_trains(operator)


def the_device_of_the_highest_loss_is_asked_after_a_restart(operator: Operator) -> None:
    told = operator.run_round(cohort={"size": 2, **BY_LOSS})
    report = operator.demo.report_of(told.round)
    assert report is not None
    losses = {update.thing: update.metrics["loss"] for update in report.updates}
    assert losses.keys() == operator.fleet.devices.keys()
    highest = max(losses, key=losses.__getitem__)
    operator.disturbed.kill(highest, TRAINER)  # what a device reported is on its disk
    killed_at = time.time() * 1000

    def back() -> bool:
        found = operator.member(highest).heartbeat
        return found is not None and found.able and found.received_at > killed_at

    eventually(back, f"{highest} able to train after its restart")
    asked = operator.run_round(cohort={"size": 1, **BY_LOSS}, min_updates=1)
    assert (asked.outcome, asked.asked, asked.uploaded, asked.joined) == ("released", 1, 1, 0)
    assert [part.thing for part in operator.parts(asked) if part.status] == [highest]


def a_late_update_counts_once_in_a_stream(operator: Operator) -> None:
    first = operator.next_round

    def rounds() -> list[RoundRecord]:
        return tables.rounds_between(operator.demo.rounds_table, operator.fleet.fleet, first, first + 500)

    operator.ready()
    with stopped(operator, "device-2"):
        started = operator.command("round", "start", "--rounds", "100", *options(STREAM))
        assert started.returncode == 0, started.stderr
        eventually(lambda: [record.phase for record in rounds()].count("closed") >= 2, "two rounds without device-2")
    eventually(lambda: any(record.from_earlier for record in rounds()), "an update of an earlier round that counts")
    assert operator.command("round", "cancel").returncode == 0
    eventually(lambda: tables.load_state(operator.demo.rounds_table, operator.fleet.fleet).open is None)
    reports = [found for record in rounds() if (found := operator.demo.report_of(record.round))]
    used = [(update.thing, update.late_for or report.round) for report in reports for update in report.updates]
    late = [(update.thing, update.late_for) for report in reports for update in report.updates if update.late_for]
    assert ("device-2", first) in late
    assert len(set(used)) == len(used)


def drift_evaluates_and_then_trains(operator: Operator) -> None:
    def compared() -> bool:
        beats = [operator.member(thing).heartbeat for thing in operator.fleet.devices]
        return all(beat and beat.drift for beat in beats)

    eventually(compared, "every device's heartbeat with what it compared")
    assert "2 have drifted from it: drift" in " ".join(operator.command("fleet", "drift").stdout.split())
    first = operator.next_round
    for step in ("evaluate", "fit"):
        looked = after_a_quarter_of_an_hour(operator, step)
        assert looked.drifted == 2
        assert operator.wait(looked.execution or "")["status"] == "SUCCEEDED"
    after_a_quarter_of_an_hour(operator, None)
    # Two looks in a row found it so.
    name = f"fedgrass/{operator.fleet.fleet}/drift"
    [alarm] = operator.fleet.aws.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
    assert alarm["StateValue"] == "ALARM", alarm["StateReason"]
    found = [tables.load_round(operator.demo.rounds_table, operator.fleet.fleet, first + later) for later in range(2)]
    assert [(record.settings.task, record.outcome) for record in found] == [
        ("evaluate", "evaluated"),
        ("fit", "released"),
    ]
    assert operator.next_round == first + 2


def after_a_quarter_of_an_hour(operator: Operator, step: str | None) -> DriftRecord:
    """Let so much time pass in the account, and wait until the schedule's look has started that step, or found none left."""
    operator.fleet.aws.advance(15 * 60)

    def looked() -> DriftRecord | None:
        record = tables.load_drift(operator.demo.rounds_table, operator.fleet.fleet)
        return record if record.step == step and (step is None or record.execution) else None

    record = eventually(looked, "the look at the fleet's drift")
    assert record is not None
    return record


@contextmanager
def stopped(operator: Operator, thing: str) -> Iterator[None]:
    """Hold a device's trainer: what it is told meanwhile it hears afterwards, in order, as one that is slow does."""
    process = operator.disturbed.running(thing, TRAINER)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def options(settings: dict[str, Any]) -> list[str]:
    """Return settings as a person gives them."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
