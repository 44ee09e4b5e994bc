"""Figures for CloudWatch in the embedded metric format: log lines from which it makes metrics by itself.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from fedgrass.cloud.rounds.services import Services
from fedgrass.protocol.drift import Standing
from fedgrass.protocol.drift_settings import DriftSettings
from fedgrass.protocol.fleet_state import FleetState
from fedgrass.protocol.members import FleetMember
from fedgrass.protocol.names import version_order
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import UNKNOWN_THING, RoundReport

NAMESPACE = "fedgrass"

_FIGURES = {
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "f1_macro": "F1Macro",
    "auc": "AUC",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "error_threshold": "ErrorThreshold",
}
_UNITS = {
    "Accuracy": "None",
    "Loss": "None",
    "Reported": "None",
    **dict.fromkeys(_FIGURES.values(), "None"),
    "UploadBytes": "Bytes",
    "PhaseSeconds": "Seconds",
    "QuarantinedPercent": "Percent",
    "SilentPercent": "Percent",
}
_TOO_MUCH_PERCENT = 97  # of processor or memory
_TOO_MANY_FAILED = 3  # rounds in a row
# Each version and each reason is a metric that is paid for.
_MOST_VALUES = 10
_FIELD_ROUNDS = 100  # models of older rounds are told of as one


def measure(services: Services, values: Mapping[str, float | None], **dimension: str) -> None:
    """Write figures of the fleet; those that are None are left out. ``dimension`` is one more beside the fleet."""
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return
    line = {
        "_aws": {
            "Timestamp": int(services.now().timestamp() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    # One set of dimensions for a line: each further set would be a metric of its own to pay for.
                    "Dimensions": [["Fleet", *dimension]],
                    "Metrics": [{"Name": name, "Unit": _UNITS.get(name, "Count")} for name in given],
                }
            ],
        },
        "Fleet": services.fleet,
        **dimension,
        **given,
    }
    # Not through logging: Lambda puts a prefix before its lines, and CloudWatch reads only whole ones.
    sys.stdout.write(json.dumps(line) + "\n")


def measure_closed(services: Services, record: RoundRecord) -> None:
    """Write a closed round's figures."""
    measure(services, {"RoundsClosed": 1}, Outcome=record.outcome or "failed")
    measure(
        services,
        {
            "DevicesAsked": record.asked,
            "UpdatesUploaded": record.contributed,
            "UpdatesDeclined": record.declined,
            "UpdatesFailed": record.failed,
            "UpdatesLate": record.late,
            "UploadBytes": record.bytes_uploaded,
            "ModelsRefused": record.refused + record.rolled_back,
        },
    )
    times = (record.opened_at, record.collected_at, record.aggregated_at, record.closed_at)
    # A phase that was not reached has no end, and so no figure.
    for phase, began, ended in zip(("collecting", "aggregating", "rolling_out"), times[:-1], times[1:], strict=True):
        measure(services, {"PhaseSeconds": _seconds(began, ended)}, Phase=phase)


def measure_report(services: Services, report: RoundReport, held_in_a_row: int) -> None:
    """Write metrics of what the aggregator found.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    report
        The round's report.
    held_in_a_row
        Rounds in a row that the gate has held for the same reason.
    """
    # What strangers leave there is none of the round's updates: it must not hide how many of the fleet's own were refused.
    refused = [entry for entry in report.quarantined if entry.reason != UNKNOWN_THING]
    judged = len(report.updates) + len(refused)
    measure(
        services,
        {
            "Accuracy": report.evaluation.accuracy if report.evaluation else None,
            "Loss": report.evaluation.loss if report.evaluation else None,
            **{_FIGURES[name]: value for name, value in _others(report).items()},
            "UpdatesUsed": len(report.updates),
            "RoundsHeldInARow": held_in_a_row,
            "QuarantinedPercent": 100 * len(refused) / judged if judged else None,
        },
    )
    for name, value in list(report.reported.items())[:_MOST_VALUES]:
        measure(services, {"Reported": value}, Figure=name)
    for reason, count in Counter(entry.reason for entry in report.quarantined).most_common(_MOST_VALUES):
        measure(services, {"UpdatesQuarantined": count}, Reason=reason)


def measure_drift(services: Services, standing: Standing, settings: DriftSettings) -> None:
    """Write how many devices have drifted from the fleet's profile, and whether that makes it the fleet's matter."""
    measure(services, {"DevicesDrifted": standing.drifted, "FleetDrifted": int(standing.is_drift(settings))})


def measure_fleet(services: Services, members: list[FleetMember], state: FleetState) -> None:
    """Write how the fleet is: who is alive, overloaded or failing, and which models are in the field.

    A device says itself which model it has: what no round of this fleet can have made is one figure, ``other``.

    Parameters
    ----------
    services
        The fleet's clients and tables.
    members
        The fleet's devices.
    state
        The fleet's state, which knows the versions that its rounds can have made.
    """
    now = services.now().timestamp() * 1000
    heard = [member.heartbeat for member in members if member.heartbeat]
    alive = [heartbeat for heartbeat in heard if heartbeat.alive(now)]
    measure(
        services,
        {
            "DevicesAlive": len(alive),
            "DevicesAble": sum(heartbeat.able for heartbeat in alive),
            # Of those ever heard: a fleet of which nothing was heard yet has no such figure.
            "SilentPercent": 100 * (1 - len(alive) / len(heard)) if heard else None,
            "DevicesOverCpu": sum(heartbeat.cpu_percent >= _TOO_MUCH_PERCENT for heartbeat in alive),
            "DevicesOverMemory": sum(heartbeat.memory_percent >= _TOO_MUCH_PERCENT for heartbeat in alive),
            "DevicesFailing": sum(heartbeat.trainer.tally.failed_in_a_row >= _TOO_MANY_FAILED for heartbeat in alive),
        },
    )
    versions = Counter(_version(heartbeat.model_version, state) for heartbeat in alive)
    for version, count in versions.most_common(_MOST_VALUES):
        measure(services, {"DevicesOnModel": count}, Version=version)


def _others(report: RoundReport) -> dict[str, float]:
    found = report.evaluation.metrics if report.evaluation else {}
    return {name: value for name, value in found.items() if name in _FIGURES}


def _version(version: str | None, state: FleetState) -> str:
    if version is None or state.model is None:
        return "none" if version is None else "other"
    line, number, patch = version_order(version)
    current, _, _ = version_order(state.model.version)
    # Bounded on purpose: a device may report any version, and each distinct one would be a metric that is paid for.
    by_a_round = line == current and patch == 0 and max(0, state.last - _FIELD_ROUNDS) <= number <= state.last
    by_the_operator = line <= current and (number, patch) == (0, 0)
    return version if by_a_round or by_the_operator or version == state.model.version else "other"


def _seconds(began: datetime | None, ended: datetime | None) -> float | None:
    return (ended - began).total_seconds() if began and ended else None
