"""Alarms: their states against the tables of CloudWatch's page, and what services and functions tell them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.cloudwatch.models import CloudWatchBackend

from fedgrass.local.aws import metrics
from fedgrass.local.aws.alarm_state import EXTRA_PERIODS, judge
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.aws.metrics import Metrics
from tests.fixtures.functions import function, role
from tests.fixtures.waiting import eventually

STATES = ("OK", "ALARM", "INSUFFICIENT_DATA")
TREATMENTS = ("missing", "ignore", "breaching", "notBreaching")
AS_BEFORE = "as before"


@pytest.mark.parametrize(
    ("to_alarm", "points", "expected"),
    [
        # Three periods count, and five are looked at; each column is a treatment of missing data.
        (3, "0-X-X", ("OK", "OK", "OK", "OK")),
        (3, "0----", ("OK", "OK", "OK", "OK")),
        (3, "-----", ("INSUFFICIENT_DATA", AS_BEFORE, "ALARM", "OK")),
        (3, "0XX-X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (3, "--X--", ("ALARM", AS_BEFORE, "ALARM", "OK")),
        (2, "0-X-X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (2, "00X0X", ("ALARM", "ALARM", "ALARM", "ALARM")),
        (2, "0-X--", ("OK", "OK", "ALARM", "OK")),
        (2, "----0", ("OK", "OK", "ALARM", "OK")),
        (2, "---X-", ("ALARM", AS_BEFORE, "ALARM", "OK")),
        # Too early for an alarm, says the text below the tables.
        (3, "----X", ("OK", "OK", "ALARM", "OK")),
        (3, "---X-", ("OK", "OK", "ALARM", "OK")),
    ],
)
@pytest.mark.parametrize("before", STATES)
def test_states_are_those_of_the_pages_tables(to_alarm: int, points: str, expected: Sequence[str], before: str) -> None:
    read = [{"0": False, "X": True}.get(point) for point in points]
    found = [judge(read, periods=3, to_alarm=to_alarm, missing=missing, before=before) for missing in TREATMENTS]
    assert found == [before if state == AS_BEFORE else state for state in expected]


@given(st.data(), st.integers(1, 6), st.sampled_from(STATES), st.sampled_from(TREATMENTS))
def test_with_enough_data_only_the_newest_count_and_with_less_what_stands_for_it(
    data: st.DataObject, periods: int, before: str, missing: str
) -> None:
    to_alarm = data.draw(st.integers(1, periods))
    size = periods + EXTRA_PERIODS
    points = data.draw(st.lists(st.sampled_from([True, False, None]), min_size=size, max_size=size))
    state = judge(points, periods=periods, to_alarm=to_alarm, missing=missing, before=before)
    real = [point for point in points if point is not None]
    newest = "".join("X" if point else "0" for point in real)[-periods:]
    if len(newest) == periods:
        assert state == ("ALARM" if newest.count("X") >= to_alarm else "OK")
    elif missing in {"breaching", "notBreaching"}:
        filled = newest.ljust(periods, "X" if missing == "breaching" else "0")
        assert state == ("ALARM" if filled.count("X") >= to_alarm else "OK")
    elif "0" in newest:
        assert state == ("ALARM" if newest.count("X") >= to_alarm else "OK")
    else:
        assert state != "OK" or 0 < len(newest) < to_alarm or before == "OK"


class Watched:
    """An alarm on a metric of its own, unless another is named."""

    def __init__(self, account: LocalAwsProcess, name: str, **changes: Any) -> None:
        self.account = account
        self.name = name
        self.cloudwatch = account.client("cloudwatch")
        self.options: dict[str, Any] = {
            "AlarmName": name,
            "Namespace": "test",
            "MetricName": name,
            "Statistic": "Sum",
            "Period": 300,
            "EvaluationPeriods": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "Threshold": 1,
            "TreatMissingData": "notBreaching",
            **changes,
        }
        self.cloudwatch.put_metric_alarm(**self.options)

    @property
    def described(self) -> dict[str, Any]:
        [found] = self.cloudwatch.describe_alarms(AlarmNames=[self.name])["MetricAlarms"]
        return dict(found)

    @property
    def state(self) -> str:
        return str(self.described["StateValue"])

    def put(self, value: float, **more: Any) -> None:
        figure = {"MetricName": self.name, "Value": value, **more}
        self.cloudwatch.put_metric_data(Namespace="test", MetricData=[figure])

    def after_a_minute(self) -> str:
        self.account.advance(60)
        return self.state


def test_an_alarm_begins_without_data_and_goes_by_its_metric(local_aws: LocalAwsProcess, unique: str) -> None:
    alarm = Watched(local_aws, unique)
    assert alarm.state == "INSUFFICIENT_DATA"
    assert alarm.after_a_minute() == "OK"
    alarm.put(1)
    assert alarm.after_a_minute() == "ALARM"
    assert "[1.0 (" in alarm.described["StateReason"]
    assert "was greater than or equal to the threshold (1.0)" in alarm.described["StateReason"]
    data = json.loads(alarm.described["StateReasonData"])
    assert (data["recentDatapoints"], data["threshold"], data["statistic"], data["period"]) == ([1.0], 1.0, "Sum", 300)
    # Put once more, as by an update of its stack, it has another threshold and its state.
    alarm.cloudwatch.put_metric_alarm(**{**alarm.options, "Threshold": 2})
    assert alarm.state == "ALARM"
    assert alarm.after_a_minute() == "OK"
    alarm.put(1, Timestamp=local_aws.advance(0))
    assert alarm.after_a_minute() == "ALARM"
    # Its last datum counts for as long as it is within the periods that are looked at.
    local_aws.advance(3 * 300)
    assert alarm.state == "OK"


@pytest.mark.parametrize(
    ("statistic", "values", "expected"),
    [
        ("Minimum", [1, 5], 1),
        ("Maximum", [1, 5], 5),
        ("Average", [1, 5], 3),
        ("Sum", [1, 5], 6),
        ("SampleCount", [1, 5], 2),
    ],
)
def test_each_statistic_is_of_all_figures_of_a_period(
    local_aws: LocalAwsProcess, unique: str, statistic: str, values: list[int], expected: float
) -> None:
    alarm = Watched(local_aws, unique, Statistic=statistic, ComparisonOperator="LessThanThreshold", Threshold=0)
    for value in values:
        alarm.put(value)
    alarm.put(-100, Dimensions=[{"Name": "Fleet", "Value": "another"}])
    assert alarm.after_a_minute() == "OK"
    assert json.loads(alarm.described["StateReasonData"])["recentDatapoints"] == [expected]


def test_two_of_two_quarters_of_an_hour_make_a_drift_alarm_and_one_does_not(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    alarm = Watched(local_aws, unique, Statistic="Minimum", Period=900, EvaluationPeriods=2, DatapointsToAlarm=2)
    states = []
    for value in (1, 0, 1, 1, 0):
        alarm.put(value)
        states.append(alarm.after_a_minute())
        local_aws.advance(14 * 60)
    assert states == ["OK", "OK", "OK", "ALARM", "OK"]


def test_a_change_of_state_is_an_event_and_a_message_to_the_topic(local_aws: LocalAwsProcess, unique: str) -> None:
    sqs, sns, events = (local_aws.client(service) for service in ("sqs", "sns", "events"))
    queue = sqs.create_queue(QueueName=unique)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    topic = sns.create_topic(Name=unique)["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    pattern = {"source": ["aws.cloudwatch"], "detail": {"alarmName": [unique], "state": {"value": ["ALARM"]}}}
    events.put_rule(Name=unique, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=unique, Targets=[{"Id": "1", "Arn": arn}])
    dimension = {"Name": "Fleet", "Value": unique}
    alarm = Watched(local_aws, unique, AlarmActions=[topic], Dimensions=[dimension], AlarmDescription="why")
    alarm.put(3, Dimensions=[dimension])
    assert alarm.after_a_minute() == "ALARM"

    messages: list[dict[str, Any]] = []

    def received() -> list[dict[str, Any]]:
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            messages.append(json.loads(message["Body"]))
        return messages if len(messages) == 2 else []

    eventually(received, "an event and a message")
    [event] = [message for message in messages if "detail" in message]
    [notice] = [message for message in messages if "Message" in message]
    detail = event["detail"]
    assert (event["source"], event["detail-type"]) == ("aws.cloudwatch", "CloudWatch Alarm State Change")
    assert event["resources"] == [alarm.described["AlarmArn"]]
    assert (detail["previousState"]["value"], detail["state"]["value"]) == ("INSUFFICIENT_DATA", "ALARM")
    metric = detail["configuration"]["metrics"][0]["metricStat"]
    assert metric == {
        "metric": {"namespace": "test", "name": unique, "dimensions": {"Fleet": unique}},
        "period": 300,
        "stat": "Sum",
    }
    assert notice["Subject"] == f'ALARM: "{unique}" in US East (N. Virginia)'
    said = json.loads(notice["Message"])
    assert (said["AlarmName"], said["OldStateValue"], said["NewStateValue"]) == (unique, "INSUFFICIENT_DATA", "ALARM")
    assert said["NewStateReason"] == detail["state"]["reason"]
    assert said["Trigger"]["Dimensions"] == [{"name": "Fleet", "value": unique}]
    # A state that somebody sets is acted on, and does not last beyond the next look.
    alarm.cloudwatch.set_alarm_state(AlarmName=unique, StateValue="OK", StateReason="tried")
    messages.clear()
    assert alarm.after_a_minute() == "ALARM"
    eventually(received, "both once more")
    # With actions disabled the topic hears nothing; the event comes all the same.
    alarm.cloudwatch.disable_alarm_actions(AlarmNames=[unique])
    alarm.cloudwatch.set_alarm_state(AlarmName=unique, StateValue="OK", StateReason="tried")
    messages.clear()
    assert alarm.after_a_minute() == "ALARM"
    eventually(lambda: received() or messages, "the event")
    assert [message for message in messages if "Message" in message] == []


WRITER = """
    import json, time

    def handler(event, context):
        for line in event["lines"]:
            print(line if isinstance(line, str) else json.dumps(line))
        if event.get("fail"):
            raise ValueError("as asked")
"""


def embedded(namespace: str, name: str, at: float, **members: Any) -> dict[str, Any]:
    directive = {"Namespace": namespace, "Dimensions": [["Fleet"]], "Metrics": [{"Name": name, "Unit": "Count"}]}
    return {"_aws": {"Timestamp": int(at * 1000), "CloudWatchMetrics": [directive]}, "Fleet": namespace, **members}


def test_what_a_function_writes_as_metrics_and_that_it_fails_reaches_alarms(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    function(local_aws, unique, textwrap.dedent(WRITER))
    invoke = local_aws.client("lambda").invoke
    own = {"Namespace": unique, "Dimensions": [{"Name": "Fleet", "Value": unique}]}
    values = Watched(local_aws, f"{unique}-v", **own, MetricName="Values", Threshold=6)
    errors = Watched(
        local_aws,
        f"{unique}-e",
        Namespace="AWS/Lambda",
        MetricName="Errors",
        Dimensions=[{"Name": "FunctionName", "Value": unique}],
    )
    now = datetime.now().timestamp()
    lines = [
        embedded(unique, "Values", now, Values=[1, 2]),
        "a line of its own",
        '{"_aws": ',
        '{"_aws": {"Timestamp": "late"}}',
        '{"_aws": {"Timestamp": 1, "CloudWatchMetrics": 3}}',
        "[]",
        embedded(unique, "Values", now),
        embedded(unique, "Values", now, Values="three"),
        embedded(unique, "Values", now, Values=True),
        embedded(unique, "Values", now, Values=float("nan")),
        embedded(unique, "Values", now, Values=3),
    ]
    assert "FunctionError" not in invoke(FunctionName=unique, Payload=json.dumps({"lines": lines}))
    assert (values.after_a_minute(), errors.state) == ("ALARM", "OK")
    assert json.loads(values.described["StateReasonData"])["recentDatapoints"] == [6.0]
    assert "FunctionError" in invoke(FunctionName=unique, Payload=json.dumps({"lines": [], "fail": True}))
    assert errors.after_a_minute() == "ALARM"


def test_a_failed_execution_an_event_that_nobody_takes_and_a_waiting_message_reach_alarms(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    states, events, sqs = (local_aws.client(service) for service in ("stepfunctions", "events", "sqs"))
    definition = {"StartAt": "No", "States": {"No": {"Type": "Fail"}}}
    machine = states.create_state_machine(
        name=unique, definition=json.dumps(definition), roleArn=role(local_aws, "states")
    )["stateMachineArn"]
    queue = sqs.create_queue(QueueName=unique)["QueueUrl"]
    letters = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name=unique, EventPattern=json.dumps({"source": [unique]}))
    gone = machine.replace(unique, "gone")
    events.put_targets(Rule=unique, Targets=[{"Id": "1", "Arn": gone, "DeadLetterConfig": {"Arn": letters}}])

    def of(namespace: str, metric: str, dimension: str, value: str) -> Watched:
        watched = {"Namespace": namespace, "MetricName": metric, "Dimensions": [{"Name": dimension, "Value": value}]}
        return Watched(local_aws, f"{unique}-{metric}", **watched, Statistic="Maximum")

    alarms = [
        of("AWS/States", "ExecutionsFailed", "StateMachineArn", machine),
        of("AWS/Events", "FailedInvocations", "RuleName", unique),
        of("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", unique),
    ]
    local_aws.advance(60)
    assert [alarm.state for alarm in alarms] == ["OK"] * 3
    states.start_execution(stateMachineArn=machine)
    events.put_events(Entries=[{"Source": unique, "DetailType": "Test", "Detail": "{}"}])
    for alarm in alarms:
        eventually(lambda alarm=alarm: alarm.after_a_minute() == "ALARM", alarm.name)  # type: ignore[misc]


def test_figures_of_one_minute_are_one_entry_and_those_of_two_weeks_ago_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = CloudWatchBackend("us-east-1", "1")
    monkeypatch.setattr(metrics, "_backend", lambda: backend)
    times = [datetime(2026, 12, 1, 12, 0, second, tzinfo=timezone.utc) for second in range(60)]
    now = iter([*times, times[0] + timedelta(minutes=1)])
    figures = Metrics(now=lambda: next(now), shown=lambda at: at)
    for value in range(60):
        figures.add("test", "Value", {"Fleet": "mill"}, value)
    figures.add("test", "Value", {"Fleet": "mill"}, -5, 5)
    assert [(one.min, one.max, one.sum, one.sample_count) for one in backend.metric_data] == [  # type: ignore[attr-defined]
        (0, 59, sum(range(60)), 60),
        (-5, 5, 0, 2),
    ]
    later = times[0] + timedelta(days=15, seconds=61)
    Metrics(now=lambda: later, shown=lambda at: at).forget()
    assert [one.timestamp for one in backend.metric_data] == []
