"""CloudWatch's alarms: moto keeps them, and nothing there ever looks at their metrics.

Each minute every alarm on one metric and one of the five plain statistics gets the state that its data points give it. Alarms on
expressions, percentiles or other alarms stay as they are.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html
"""

from __future__ import annotations

import json
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from moto.cloudwatch.models import Alarm, CloudWatchBackend, MetricDatumBase, Statistics, cloudwatch_backends

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.alarm_state import ALARM, EXTRA_PERIODS, INSUFFICIENT_DATA, judge
from fedgrass.local.aws.clock import let
from fedgrass.local.aws.metrics import Metrics, naive
from fedgrass.local.aws.notices import event_of, notice_of
from fedgrass.local.aws.overrides import override
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from fedgrass.local.aws.events import Emit

_MINUTE = timedelta(minutes=1)
_COMPARISONS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}
_STATISTICS = {"SampleCount", "Average", "Sum", "Minimum", "Maximum"}
_FIRST_REASON = "Unchecked: Initial alarm creation"

Data = Mapping[object, list[MetricDatumBase]]
"""Figures by metric."""


def repair(changed: Callable[[Alarm, dict[str, Any]], None]) -> None:
    """Have moto make alarms without data, and keep the state of one that is put again; tell of each change of state.

    Parameters
    ----------
    changed
        Called with an alarm and what was so of its state before.
    """
    put_alarm, update = CloudWatchBackend.put_metric_alarm, Alarm.update_state

    def put_and_keep(backend: CloudWatchBackend, name: str, *others: Any, **options: Any) -> Alarm:
        before = backend.alarms.get(name)
        alarm = put_alarm(backend, name, *others, **options)
        if before is None:
            alarm.state_value, alarm.state_reason = INSUFFICIENT_DATA, _FIRST_REASON
        else:
            vars(alarm).update({**state_of(before), "history": before.history})
        return alarm

    def update_and_tell(alarm: Alarm, reason: str, reason_data: str, state_value: str) -> None:
        before = state_of(alarm)
        update(alarm, reason, reason_data, state_value)
        if state_value != before["state_value"]:
            changed(alarm, before)

    override(CloudWatchBackend, "put_metric_alarm", put_and_keep)
    override(Alarm, "update_state", update_and_tell)


def state_of(alarm: Alarm) -> dict[str, Any]:
    """Return what belongs to an alarm's state, by moto's names."""
    return {name: value for name, value in vars(alarm).items() if name.startswith("state_")}


class Alarms:
    """Looks at every alarm's metric each minute: a part of the account's clock.

    Parameters
    ----------
    now
        The account's time.
    metrics
        The figures; those that are not told but looked up are looked up first.
    """

    def __init__(self, *, now: Callable[[], datetime], metrics: Metrics) -> None:
        self._metrics = metrics
        self._next = _minute(now()) + _MINUTE

    def due(self) -> datetime:
        """Return when the next look is due."""
        return self._next

    def happen(self, now: datetime) -> None:
        """Give each alarm its state as of the last full minute, if a look is due."""
        if now < self._next:
            return
        end = _minute(now)
        self._next = end + _MINUTE
        alarms = [alarm for alarm in list(cloudwatch_backends[ACCOUNT][REGION].alarms.values()) if _is_plain(alarm)]
        if not alarms:
            return
        self._metrics.forget()
        data = _by_metric(cloudwatch_backends[ACCOUNT][REGION].metric_data)
        for alarm in alarms:
            let(alarm.name, _look, alarm, data, end)
        # Of the minute that begins, which the next look is about.
        self._metrics.of_queues()


class Actions:
    """Does what an alarm's change of state asks for: an event, and messages to topics.

    Parameters
    ----------
    emit
        Sends the event.
    publish
        Sends a message: the topic's ARN, the subject, the message.
    now
        The account's time.
    """

    def __init__(self, emit: Emit, publish: Callable[[str, str, str], None], now: Callable[[], datetime]) -> None:
        self._emit = emit
        self._publish = publish
        self._now = now

    def __call__(self, alarm: Alarm, before: dict[str, Any]) -> None:
        """Tell of a change, at the account's time."""
        alarm.state_updated_timestamp = naive(self._now())
        log_event("alarm_changed", alarm=alarm.name, state=alarm.state_value, reason=alarm.state_reason)
        self._emit("aws.cloudwatch", "CloudWatch Alarm State Change", [alarm.alarm_arn], event_of(alarm, before))
        actions = {ALARM: alarm.alarm_actions, INSUFFICIENT_DATA: alarm.insufficient_data_actions}
        for action in actions.get(alarm.state_value, alarm.ok_actions) if alarm.actions_enabled else ():
            self._act(action, alarm, before)

    def _act(self, action: str, alarm: Alarm, before: dict[str, Any]) -> None:
        reason = "only topics are told here"
        if action.split(":")[2:3] == ["sns"]:
            try:
                self._publish(action, *notice_of(alarm, before))
            except (BotoCoreError, ClientError, FedgrassError) as error:
                reason = str(error)
            else:
                return
        log_event("alarm_action_failed", alarm=alarm.name, action=action, reason=reason)


def to_topics(connect: Callable[[str], Any]) -> Callable[[str, str, str], None]:
    """Return what publishes to a topic; the client is made for the first message."""

    def publish(topic: str, subject: str, message: str) -> None:
        connect("sns").publish(TopicArn=topic, Subject=subject, Message=message)

    return publish


def _is_plain(alarm: Alarm) -> bool:
    plain = alarm.rule is None and not alarm.metric_data_queries and not alarm.extended_statistic
    return plain and alarm.statistic in _STATISTICS and alarm.comparison_operator in _COMPARISONS


def _look(alarm: Alarm, data: Data, end: datetime) -> None:
    periods, period = int(alarm.evaluation_periods), timedelta(seconds=int(alarm.period))
    values = _values(alarm, data, end, period, periods + EXTRA_PERIODS)
    is_beyond = _COMPARISONS[alarm.comparison_operator][0]
    points = [None if value is None else is_beyond(value, float(alarm.threshold)) for value in values]
    needed = int(alarm.datapoints_to_alarm or periods)
    missing = alarm.treat_missing_data or "missing"
    state = judge(points, periods=periods, to_alarm=needed, missing=missing, before=alarm.state_value)
    if state == alarm.state_value:
        return
    real = [(end - period * (len(values) - n), value) for n, value in enumerate(values) if value is not None][-periods:]
    reason_data = {
        "version": "1.0",
        "queryDate": f"{end:%Y-%m-%dT%H:%M:%S}.000+0000",
        **({"startDate": f"{real[0][0]:%Y-%m-%dT%H:%M:%S}.000+0000"} if real else {}),
        "statistic": alarm.statistic,
        "period": int(alarm.period),
        "recentDatapoints": [value for _, value in real],
        "threshold": float(alarm.threshold),
    }
    alarm.update_state(_reason(alarm, real, state, needed, periods), json.dumps(reason_data), state)


def _values(alarm: Alarm, data: Data, end: datetime, period: timedelta, count: int) -> list[float | None]:
    """Return the statistic of each period up to ``end``, the oldest first; None of one without data."""
    found = data.get(_key(alarm.namespace, alarm.metric_name, alarm), ())
    first = naive(end - period * count)
    periods = [Statistics([alarm.statistic], first + period * n) for n in range(count)]
    for datum in found:
        index = (naive(datum.timestamp) - first) // period
        if 0 <= index < count and alarm.unit in (None, datum.unit):
            periods[index].metric_data.append(datum)
    values = [one.get_statistics_for_type(alarm.statistic) if one.metric_data else None for one in periods]
    return [None if value is None else float(value) for value in values]


def _reason(alarm: Alarm, real: list[tuple[datetime, float]], state: str, needed: int, periods: int) -> str:
    """Say what made the state, much as the service does."""
    if not real:
        what = "Insufficient Data" if state == INSUFFICIENT_DATA else "Threshold Crossed"
        return f"{what}: no datapoints were received for {periods} period{'s' if periods > 1 else ''}."
    is_beyond, words = _COMPARISONS[alarm.comparison_operator]
    of_state = [
        (at, value) for at, value in real if is_beyond(value, float(alarm.threshold)) == (state == ALARM)
    ] or real
    shown = ", ".join(f"{value} ({at:%d/%m/%y %H:%M:%S})" for at, value in reversed(of_state))
    verb = ("were" if len(of_state) > 1 else "was") + ("" if state == ALARM else " not")
    least = needed if state == ALARM else periods - needed + 1
    return (
        f"Threshold Crossed: {len(of_state)} out of the last {len(real)} datapoints [{shown}] {verb} {words} the threshold "
        f"({float(alarm.threshold)}) (minimum {least} datapoint{'s' if least > 1 else ''} for {alarm.state_value} -> {state} "
        "transition)."
    )


def _by_metric(figures: Iterable[MetricDatumBase]) -> Data:
    found: defaultdict[object, list[MetricDatumBase]] = defaultdict(list)
    for figure in list(figures):
        found[_key(figure.namespace, figure.name, figure)].append(figure)
    return found


def _key(namespace: str, name: str, of: Alarm | MetricDatumBase) -> object:
    return namespace, name, frozenset((dimension.name, dimension.value) for dimension in of.dimensions)


def _minute(time: datetime) -> datetime:
    return time.astimezone(timezone.utc).replace(second=0, microsecond=0)
