"""Figures for CloudWatch in the embedded metric format: log lines from which it makes metrics by itself.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from cloud.rounds.services import Services
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.tables import FleetMember

NAMESPACE = "fedgrass"

_UNITS = {
    "Accuracy": "None",
    "Loss": "None",
    "UploadBytes": "Bytes",
    "PhaseSeconds": "Seconds",
    "QuarantinedPercent": "Percent",
    "SilentPercent": "Percent",
}
# Each version and each reason is a metric that is paid for.
_MOST_VALUES = 10


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
            "UpdatesUploaded": record.uploaded,
            "UpdatesDeclined": record.declined,
            "UpdatesFailed": record.failed,
            "UpdatesLate": record.late,
            "UploadBytes": record.bytes_uploaded,
            "ModelsRefused": record.refused + record.rolled_back,
        },
    )
    times = (record.opened_at, record.collected_at, record.aggregated_at, record.closed_at)
    for phase, began, ended in zip(("collecting", "aggregating", "rolling_out"), times[:-1], times[1:], strict=True):
        measure(services, {"PhaseSeconds": _seconds(began, ended)}, Phase=phase)


def measure_report(services: Services, report: RoundReport) -> None:
    """Write what the aggregator found."""
    judged = len(report.updates) + len(report.quarantined)
    measure(
        services,
        {
            "Accuracy": report.evaluation.accuracy if report.evaluation else None,
            "Loss": report.evaluation.loss if report.evaluation else None,
            "UpdatesUsed": len(report.updates),
            "QuarantinedPercent": 100 * len(report.quarantined) / judged if judged else None,
        },
    )
    for reason, count in Counter(entry.reason for entry in report.quarantined).most_common(_MOST_VALUES):
        measure(services, {"UpdatesQuarantined": count}, Reason=reason)


def measure_fleet(services: Services, members: list[FleetMember]) -> None:
    """Write how the fleet is: who is alive, and which models are in the field."""
    now = services.now().timestamp() * 1000
    heard = [member.heartbeat for member in members if member.heartbeat]
    alive = [heartbeat for heartbeat in heard if heartbeat.alive(now)]
    measure(
        services,
        {
            "DevicesAlive": len(alive),
            "DevicesAble": sum(heartbeat.able for heartbeat in alive),
            "SilentPercent": 100 * (1 - len(alive) / len(heard)) if heard else None,
        },
    )
    for version, count in Counter(heartbeat.model_version or "none" for heartbeat in alive).most_common(_MOST_VALUES):
        measure(services, {"DevicesOnModel": count}, Version=version)


def _seconds(began: datetime | None, ended: datetime | None) -> float | None:
    return (ended - began).total_seconds() if began and ended else None
