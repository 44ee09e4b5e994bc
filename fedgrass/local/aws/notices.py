"""What is told of an alarm's change of state: an event of EventBridge, and a message of SNS.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch-and-eventbridge.html
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import Any

from moto.cloudwatch.models import Alarm

from fedgrass.local.aws.account import ACCOUNT

_REGION_NAME = "US East (N. Virginia)"


def event_of(alarm: Alarm, before: dict[str, Any]) -> dict[str, object]:
    """Return the detail of "CloudWatch Alarm State Change".

    Parameters
    ----------
    alarm
        As it is now.
    before
        What was so of its state before, by moto's names.
    """
    metric = {
        "namespace": alarm.namespace,
        "name": alarm.metric_name,
        "dimensions": {dimension.name: dimension.value for dimension in alarm.dimensions},
    }
    stat = {"metric": metric, "period": int(alarm.period or 0), "stat": alarm.statistic}
    queried = {"id": str(uuid.uuid4()), "metricStat": stat, "returnData": True}
    return {
        "alarmName": alarm.name,
        "configuration": {"description": alarm.description, "metrics": [queried]},
        "previousState": _state(before),
        "state": _state(vars(alarm)),
    }


def notice_of(alarm: Alarm, before: dict[str, Any]) -> tuple[str, str]:
    """Return subject and message of what a topic is told, as of `event_of`."""
    trigger = {
        "MetricName": alarm.metric_name,
        "Namespace": alarm.namespace,
        "StatisticType": "Statistic",
        "Statistic": (alarm.statistic or "").upper(),
        "Unit": alarm.unit,
        "Dimensions": [{"value": dimension.value, "name": dimension.name} for dimension in alarm.dimensions],
        "Period": alarm.period,
        "EvaluationPeriods": alarm.evaluation_periods,
        "DatapointsToAlarm": alarm.datapoints_to_alarm,
        "ComparisonOperator": alarm.comparison_operator,
        "Threshold": alarm.threshold,
        "TreatMissingData": alarm.treat_missing_data or "",
        "EvaluateLowSampleCountPercentile": "",
    }
    message = {
        "AlarmName": alarm.name,
        "AlarmDescription": alarm.description,
        "AWSAccountId": ACCOUNT,
        "AlarmConfigurationUpdatedTimestamp": _time(alarm.configuration_updated_timestamp),
        "NewStateValue": alarm.state_value,
        "NewStateReason": alarm.state_reason,
        "StateChangeTime": _time(alarm.state_updated_timestamp),
        "Region": _REGION_NAME,
        "AlarmArn": alarm.alarm_arn,
        "OldStateValue": before["state_value"],
        "OKActions": alarm.ok_actions,
        "AlarmActions": alarm.alarm_actions,
        "InsufficientDataActions": alarm.insufficient_data_actions,
        "Trigger": trigger,
    }
    # SNS takes subjects of up to a hundred characters.
    return f'{alarm.state_value}: "{alarm.name}" in {_REGION_NAME}'[:100], json.dumps(message)


def _state(of: dict[str, Any]) -> dict[str, object]:
    return {
        "value": of["state_value"],
        "reason": of["state_reason"],
        "reasonData": of["state_reason_data"],
        "timestamp": _time(of["state_updated_timestamp"]),
    }


def _time(naive: datetime) -> str:
    return f"{naive:%Y-%m-%dT%H:%M:%S}.{naive.microsecond // 1000:03}+0000"
