"""The account's time: what happens in it, in which order, and when it is advanced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from moto.events.models import Rule
from moto.events.utils import EventMessageType

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws import scheduled_rules
from fedgrass.local.aws.advance import advance
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.aws.clock import Clock
from fedgrass.local.aws.scheduled_rules import ScheduledRules
from tests.fixtures.functions import RECORDER, function, role, table
from tests.fixtures.places import ROOT
from tests.fixtures.waiting import eventually

NOON = datetime(2026, 12, 1, 12, 0, 30, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


class Every:
    """A part that happens every so often, and notes when."""

    def __init__(self, every: timedelta, first: datetime, notes: list[tuple[str, datetime]], name: str = "") -> None:
        self.next = first
        self.every = every
        self.notes = notes
        self.name = name

    def due(self) -> datetime | None:
        return self.next

    def happen(self, now: datetime) -> None:
        if now < self.next:
            return
        while self.next <= now:
            self.next += self.every
        self.notes.append((self.name, now))
        if self.name == "broken":
            raise ValueError("broken")


def test_all_that_becomes_due_happens_in_its_order_at_its_own_time() -> None:
    clock = Clock(machine=lambda: NOON, stopped=True)
    notes: list[tuple[str, datetime]] = []
    clock.drive([Every(2 * MINUTE, NOON + MINUTE, notes, "b"), Every(MINUTE, NOON + MINUTE, notes, "a")])
    assert clock.advance(timedelta(seconds=59)) == NOON + timedelta(seconds=59)
    assert notes == []
    clock.advance(timedelta(seconds=1) + 2 * MINUTE)
    expected = [("b", 1), ("a", 1), ("a", 2), ("b", 3), ("a", 3)]
    assert notes == [(name, NOON + minutes * MINUTE) for name, minutes in expected]
    assert clock.now() == NOON + 3 * MINUTE
    clock.stop()


def test_a_part_that_fails_stops_neither_the_others_nor_the_time() -> None:
    clock = Clock(machine=lambda: NOON, stopped=True)
    notes: list[tuple[str, datetime]] = []
    clock.drive([Every(MINUTE, NOON, notes, "broken"), Every(MINUTE, NOON, notes, "sound")])
    clock.advance(MINUTE)
    assert [name for name, _ in notes] == ["broken", "sound"] * 2


def test_with_the_machines_time_what_is_due_happens_by_itself_and_what_was_missed_happens_once() -> None:
    times = {"now": NOON}
    clock = Clock(machine=lambda: times["now"])
    notes: list[tuple[str, datetime]] = []
    happened = threading.Event()

    class Noted(Every):
        def happen(self, now: datetime) -> None:
            super().happen(now)
            happened.set()

    clock.drive([Noted(MINUTE, NOON + MINUTE, notes)])
    times["now"] = NOON + 60 * MINUTE  # the machine slept
    clock.look()
    assert happened.wait(600)
    clock.stop()
    assert notes == [("", NOON + 60 * MINUTE)]
    # An advance comes on top of the machine's time, and what somebody wrote down by that is shown as later, too.
    clock.advance(MINUTE)
    assert clock.now() == NOON + 61 * MINUTE
    assert clock.shown(NOON) == NOON + MINUTE


class Scheduled:
    """A function, and what schedules have sent it."""

    def __init__(self, account: LocalAwsProcess, name: str) -> None:
        self.account = account
        self.name = name
        self.rows = table(account, name)
        self.arn = function(account, name, RECORDER, Environment={"Variables": {"TABLE": name}})
        self.events = account.client("events")

    def rule(self, expression: str, **target: Any) -> str:
        put = self.events.put_rule(Name=self.name, ScheduleExpression=expression)
        self.events.put_targets(Rule=self.name, Targets=[{"Id": "1", "Arn": self.arn, **target}])
        return str(put["RuleArn"])

    def received(self, count: int) -> list[dict[str, Any]]:
        """Every event, when as many have come; no more, as the last of them was sent after all others."""
        rows = eventually(lambda: rows if len(rows := self.rows.scan()["Items"]) >= count else None, f"{count} events")
        assert rows is not None
        assert len(rows) == count
        return sorted((json.loads(row["event"]) for row in rows), key=lambda event: str(event.get("time")))


@pytest.fixture
def scheduled(local_aws: LocalAwsProcess, unique: str) -> Scheduled:
    return Scheduled(local_aws, unique)


def test_a_rate_invokes_the_function_with_the_event_of_its_time(scheduled: Scheduled) -> None:
    before = scheduled.account.advance(0)
    arn = scheduled.rule("rate(15 minutes)")
    scheduled.account.advance(45 * 60)
    events = scheduled.received(3)
    assert events[0].keys() == {
        "version",
        "id",
        "detail-type",
        "source",
        "account",
        "time",
        "region",
        "resources",
        "detail",
    }
    assert (events[0]["source"], events[0]["detail-type"]) == ("aws.events", "Scheduled Event")
    assert (events[0]["resources"], events[0]["detail"]) == ([arn], {})
    times = [f"{before + timedelta(minutes=15 * n):%Y-%m-%dT%H:%M:%SZ}" for n in (1, 2, 3)]
    assert [event["time"] for event in events] == times
    assert len({event["id"] for event in events}) == 3


def test_a_rule_that_is_disabled_enabled_changed_and_deleted_is_due_accordingly(scheduled: Scheduled) -> None:
    account, events = scheduled.account, scheduled.events
    scheduled.rule("rate(10 minutes)", Input='{"n": 1}')
    events.disable_rule(Name=scheduled.name)
    account.advance(3600)
    events.enable_rule(Name=scheduled.name)
    account.advance(599)
    account.advance(1)
    assert scheduled.received(1) == [{"n": 1}]
    events.put_rule(Name=scheduled.name, ScheduleExpression="rate(1 hour)")
    account.advance(3599)
    account.advance(1)
    scheduled.received(2)
    # Put once more as it is, it goes on as before.
    account.advance(1800)
    events.put_rule(Name=scheduled.name, ScheduleExpression="rate(1 hour)")
    account.advance(1800)
    scheduled.received(3)
    events.remove_targets(Rule=scheduled.name, Ids=["1"])
    events.delete_rule(Name=scheduled.name)
    scheduled.rule("cron(0 0 1 1 ? 2150)")
    account.advance(7200)
    events.put_rule(Name=scheduled.name, ScheduleExpression="rate(1 minute)")
    account.advance(60)
    scheduled.received(4)


def test_a_schedule_and_a_pattern_of_one_rule_both_count(scheduled: Scheduled) -> None:
    scheduled.rule("rate(1 minute)")
    pattern = json.dumps({"source": [scheduled.name]})
    scheduled.events.put_rule(Name=scheduled.name, ScheduleExpression="rate(1 minute)", EventPattern=pattern)
    entry = {"DetailType": "Test", "Detail": "{}"}
    scheduled.events.put_events(Entries=[{"Source": "another", **entry}, {"Source": scheduled.name, **entry}])
    scheduled.account.advance(60)
    assert {event["source"] for event in scheduled.received(2)} == {scheduled.name, "aws.events"}


def test_a_schedule_starts_a_state_machine_and_what_it_cannot_start_is_a_dead_letter(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    states, events, sqs = (local_aws.client(service) for service in ("stepfunctions", "events", "sqs"))
    definition = {"StartAt": "Done", "States": {"Done": {"Type": "Pass", "End": True}}}
    machine = states.create_state_machine(
        name=unique, definition=json.dumps(definition), roleArn=role(local_aws, "states")
    )["stateMachineArn"]
    queue = sqs.create_queue(QueueName=unique)["QueueUrl"]
    letters = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule = events.put_rule(Name=unique, ScheduleExpression="cron(0 * * * ? *)")["RuleArn"]
    target = {"Id": "1", "Arn": machine, "Input": '{"rounds": 1}', "DeadLetterConfig": {"Arn": letters}}
    events.put_targets(Rule=unique, Targets=[target])
    local_aws.advance(3600)
    [execution] = eventually(lambda: states.list_executions(stateMachineArn=machine)["executions"])
    described = states.describe_execution(executionArn=execution["executionArn"])
    assert json.loads(described["input"]) == {"rounds": 1}
    states.delete_state_machine(stateMachineArn=machine)
    local_aws.advance(3600)
    [letter] = eventually(
        lambda: sqs.receive_message(QueueUrl=queue, MessageAttributeNames=["All"]).get("Messages"), "a dead letter"
    )
    said = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert (said["RULE_ARN"], said["TARGET_ARN"]) == (rule, machine)
    assert said["ERROR_CODE"] == "StateMachineDoesNotExist"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00Z", json.loads(letter["Body"])["time"])


@pytest.mark.parametrize("expression", ["rate(1 minutes)", "cron(0 2 * * * *)", "cron(0 2 1 * MON *)", "at(now)"])
def test_a_schedule_that_the_service_refuses_is_refused(
    local_aws: LocalAwsProcess, unique: str, expression: str
) -> None:
    events = local_aws.client("events")
    with pytest.raises(events.exceptions.ClientError, match="ScheduleExpression is not valid"):
        events.put_rule(Name=unique, ScheduleExpression=expression)


@pytest.mark.parametrize("seconds", [-1, 86_401, float("nan"), float("inf")])
def test_time_passes_within_bounds(local_aws: LocalAwsProcess, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"expected .*, from 0 to 86400; found"):
        local_aws.advance(seconds)


def test_the_command_lets_time_pass_and_says_what_it_lacks(local_aws: LocalAwsProcess) -> None:
    before = local_aws.advance(0)
    argv = [sys.executable, "-m", "fedgrass.local.aws.advance", "900"]
    done = subprocess.run(argv, env=local_aws.environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    then = before + timedelta(seconds=900)
    assert done.stdout == f"It is {then:%Y-%m-%d %H:%M:%S} UTC in the account.\n"
    without = subprocess.run(argv, env={}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert without.returncode == 1
    assert without.stderr.startswith("AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID not set")
    with pytest.raises(ConfigurationError, match="is not of this start of the local AWS"):
        advance(local_aws.endpoint_url, "another", 1)


def test_a_busy_account_may_deliver_a_scheduled_event_twice_and_a_target_that_fails_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    due = NOON + MINUTE
    rules = {
        name: Rule(name, "1", "us-east-1", None, None, "rate(1 minute)", None, "default", "ENABLED")  # type: ignore[abstract]
        for name in ("broken", "sound")
    }
    monkeypatch.setattr(scheduled_rules, "_enabled", lambda: rules)
    sent: list[tuple[str, str]] = []

    def send(rule: Rule, event: EventMessageType) -> None:
        if rule.name == "broken":
            raise NotImplementedError
        sent.append((rule.name, event["id"]))

    repeats = [True, False]
    part = ScheduledRules(now=lambda: NOON, send=send, repeats=lambda: repeats.pop())
    part.refresh()
    assert part.due() == due
    part.happen(NOON)
    assert sent == []
    # As after a machine's sleep: once for all that was missed, and then in the rhythm that it had.
    part.happen(due + 90 * MINUTE + timedelta(seconds=20))
    assert [name for name, _ in sent] == ["sound", "sound"]
    assert len({event for _, event in sent}) == 1
    assert part.due() == due + 91 * MINUTE
    # A rule that is gone or disabled when it would be due, is not due.
    rules.clear()
    part.happen(due + 91 * MINUTE)
    assert len(sent) == 2
    part.refresh()
    assert part.due() is None
