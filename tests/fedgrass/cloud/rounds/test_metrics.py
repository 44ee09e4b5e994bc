"""The figures that the functions write are those that the dashboard and the alarms show, no more and no fewer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fedgrass.cloud.rounds import refused_models
from fedgrass.cloud.rounds.abort_round import abort_round
from fedgrass.cloud.rounds.close_round import CloseRequest, close_round
from fedgrass.cloud.rounds.metrics import NAMESPACE
from fedgrass.cloud.rounds.record_deployment import DeploymentEvent, record_deployment
from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.refused_models import act_on_refusals
from fedgrass.cloud.rounds.watch_fleet import watch_fleet
from fedgrass.protocol.device_messages import Tally, TrainerStatus
from fedgrass.protocol.report import Evaluation, QuarantinedEntry
from tests.fedgrass.cloud.infrastructure.resolved import Template
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet
from tests.fedgrass.cloud.rounds.test_ending import aggregate, failure

REFUSED = QuarantinedEntry(thing="b", key="k", bytes=1, reason="not_finite", detail="NaN")

Metric = tuple[str, frozenset[str]]


def written(output: str) -> list[dict[str, Any]]:
    """The lines in embedded metric format, each checked against its specification."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"_aws"')]
    for line in lines:
        assert isinstance(line["_aws"]["Timestamp"], int)
        for directive in line["_aws"]["CloudWatchMetrics"]:
            assert directive["Namespace"] == NAMESPACE
            assert all(
                isinstance(line[name], str) and line[name] for [*names] in directive["Dimensions"] for name in names
            )
            assert all(isinstance(line[metric["Name"]], (int, float)) for metric in directive["Metrics"])
            assert {metric["Unit"] for metric in directive["Metrics"]} <= {
                "None",
                "Count",
                "Bytes",
                "Seconds",
                "Percent",
            }
    return lines


def metrics(lines: list[dict[str, Any]]) -> Iterator[Metric]:
    for line in lines:
        for directive in line["_aws"]["CloudWatchMetrics"]:
            for metric in directive["Metrics"]:
                yield metric["Name"], frozenset(directive["Dimensions"][0])


def shown() -> Iterator[Metric]:
    """What the dashboard and the alarms read."""
    template = Template()
    for alarm in template.of_type("AWS::CloudWatch::Alarm").values():
        if alarm["Namespace"] == NAMESPACE:
            yield alarm["MetricName"], frozenset(dimension["Name"] for dimension in alarm["Dimensions"])
    [dashboard] = template.of_type("AWS::CloudWatch::Dashboard").values()
    for widget in json.loads(dashboard["DashboardBody"])["widgets"]:
        for row in widget["properties"]["metrics"]:
            if isinstance(row[0], dict):
                search = re.fullmatch(
                    r"SEARCH\('\{fedgrass,([\w,]+)\} MetricName=\"(\w+)\" Fleet=\"digits\"', '\w+', 300\)",
                    row[0]["expression"],
                )
                assert search is not None
                yield search.group(2), frozenset(search.group(1).split(","))
            else:
                assert (row[0], row[3]) == (NAMESPACE, FLEET)
                yield row[1], frozenset(row[2::2])


def test_every_figure_that_is_written_is_shown_and_every_one_that_is_shown_is_written(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch_fleet(fleet.services)
    aggregate(fleet)
    fleet.pass_time(60)
    figures = dict.fromkeys(
        ("precision", "recall", "f1", "f1_macro", "auc", "mae", "rmse", "r2", "error_threshold"), 0.5
    )
    fleet.write_report(
        quarantined=(REFUSED,),
        evaluation=Evaluation(loss=0.25, accuracy=0.9, metrics=figures, examples=100),
        reported={"validation_loss": 0.5},
    )
    record_report(fleet.services, RoundRequest(round=1))
    fleet.pass_time(5)
    close_round(fleet.services, CloseRequest(round=1, rounds=1))
    event = {"resources": ["arn:aws:greengrass:us-east-1:123456789012:coreDevices:a"]}
    detail = {"deploymentId": "d", "coreDeviceExecutionStatus": "FAILED"}
    assert record_deployment(fleet.services, DeploymentEvent.model_validate({**event, "detail": detail}))
    monkeypatch.setattr(refused_models, "take_back_refused", lambda *_: "1.0.0")
    act_on_refusals(fleet.services)
    assert set(metrics(written(capsys.readouterr().out))) == set(shown())


def test_a_closed_round_is_measured_once_with_its_outcome_and_times(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    aggregate(fleet)
    fleet.pass_time(60)
    fleet.write_report(quarantined=(REFUSED,))
    record_report(fleet.services, RoundRequest(round=1))
    record_report(fleet.services, RoundRequest(round=1))
    close_round(fleet.services, CloseRequest(round=1, rounds=1))
    close_round(fleet.services, CloseRequest(round=1, rounds=1))
    lines = written(capsys.readouterr().out)
    assert [line["Outcome"] for line in lines if "RoundsClosed" in line] == ["released"]
    assert [line["QuarantinedPercent"] for line in lines if "QuarantinedPercent" in line] == [50]
    assert [(line["Reason"], line["UpdatesQuarantined"]) for line in lines if "Reason" in line] == [("not_finite", 1)]
    phases = {line["Phase"]: line["PhaseSeconds"] for line in lines if "Phase" in line}
    assert phases == {"collecting": 0, "aggregating": 60, "rolling_out": 0}


def test_a_round_that_fails_says_so(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    aggregate(fleet)
    abort_round(fleet.services, failure())
    outcomes = [line["Outcome"] for line in written(capsys.readouterr().out) if "Outcome" in line]
    assert outcomes == ["failed"]


def test_a_silent_device_is_seen_between_rounds(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.pass_time(1000)
    fleet.heartbeats("a", "b")
    watch_fleet(fleet.services)
    [figures] = [line for line in written(capsys.readouterr().out) if "SilentPercent" in line]
    assert figures["DevicesAlive"] == 2
    assert figures["SilentPercent"] == pytest.approx(100 / 3)


def test_devices_that_are_overloaded_or_fail_again_and_again_are_counted(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally(failed=7, failed_in_a_row=3)
    fleet.heartbeats("a", cpu_percent=97.0, trainer=TrainerStatus(tally=tally))
    fleet.heartbeats("b", memory_percent=98.5, trainer=TrainerStatus(tally=Tally(failed=7, failed_in_a_row=2)))
    watch_fleet(fleet.services)
    [figures] = [line for line in written(capsys.readouterr().out) if "DevicesAlive" in line]
    assert (figures["DevicesOverCpu"], figures["DevicesOverMemory"], figures["DevicesFailing"]) == (1, 1, 1)


def test_another_fleet_s_deployment_is_none_of_our_business(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    event = {
        "resources": ["arn:aws:greengrass:us-east-1:123456789012:coreDevices:stranger"],
        "detail": {"deploymentId": "d", "coreDeviceExecutionStatus": "FAILED"},
    }
    assert not record_deployment(fleet.services, DeploymentEvent.model_validate(event))
    assert not written(capsys.readouterr().out)


def test_a_device_that_makes_up_versions_makes_no_metrics(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Each version is a metric that is paid for by the month."""
    fleet.open()
    made_up = [f"9.{number}.7" for number in range(30)] + ["1.2.0", "1.1.1", "2.0.0", "7.1.0"]
    versions = ["1.0.0", "1.1.0", None, *made_up]
    for index, version in enumerate(versions):
        fleet.heartbeats(f"d{index}", model_version=version)
    watch_fleet(fleet.services)
    counts = {line["Version"]: line["DevicesOnModel"] for line in written(capsys.readouterr().out) if "Version" in line}
    assert counts == {"1.0.0": 1, "1.1.0": 1, "none": 1 + 3, "other": len(made_up)}
