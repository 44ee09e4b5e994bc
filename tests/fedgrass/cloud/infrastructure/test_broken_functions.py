"""With every function broken, `fedgrass round start` and `round status` say so; what events were lost is shown."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from fedgrass.account import Account
from fedgrass.cli.rounds import app
from fedgrass.cloud.infrastructure import deploy as deploying
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.cloud.infrastructure.package import _archive
from fedgrass.errors import FedgrassError, RoundRefusedError
from fedgrass.failures import LostEvent, _read, in_words, last_failure, lost_events
from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.local_aws import local_aws, unique
from tests.fixtures.waiting import eventually

__all__ = ["local_aws", "unique"]

pytestmark = pytest.mark.end_to_end


def run(*arguments: str) -> tuple[str, FedgrassError | None]:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=True)
    assert done.exception is None or isinstance(done.exception, (FedgrassError, SystemExit)), done.exception
    return done.output, done.exception if isinstance(done.exception, FedgrassError) else None


def test_with_every_function_broken_the_commands_say_so_and_lost_events_are_shown(
    local_aws: LocalAwsProcess, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as broken:
        code = _archive(
            {
                "fedgrass/__init__.py": b"",
                "fedgrass/cloud/__init__.py": b"raise RuntimeError('nothing works')",
                "fedgrass/cloud/rounds/__init__.py": b"",
            }
        )
        broken.setattr(deploying, "functions_archive", lambda **_: code)
        parameters = {
            "ModelComponent": f"com.fedgrass.GlobalModel.{unique}",
            "Schedule": "rate(1 hour)",
            "ScheduleInput": '{"rounds": 2}',
        }
        deploy(boto3.Session(), fleet=unique, parameters=parameters, dependencies=False)
    output, error = run("start", "--fleet", unique)
    assert isinstance(error, RoundRefusedError), output
    assert "no round was opened" in str(error)
    assert "nothing works" in str(error)

    output, error = run("status", "--fleet", unique)
    assert error is None
    assert "The last execution ended as FAILED" in output

    # A device's notice reaches a function by a rule, and nobody waits for that.
    account = Account.of(unique)
    account.session.client("iot-data").publish(topic=f"fedgrass/{unique}/devices/a/update", qos=1, payload=b"{}")
    [lost, *_] = eventually(
        lambda: [one for one in lost_events(account) if "RecordUpdate" in one.function], "a lost event"
    )
    assert "nothing works" in lost.error
    assert json.loads(lost.event)["topic"] == f"fedgrass/{unique}/devices/a/update"
    output, _ = run("status", "--fleet", unique)
    assert lost.function in output
    assert lost_events(account), "looking takes nothing out of the queue"
    failed = last_failure(account)
    assert failed is not None
    assert failed.status == "FAILED"

    # Each of these is an alarm of the stack.
    local_aws.advance(120)
    alarms = local_aws.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"fedgrass/{unique}/")["MetricAlarms"]
    raised = {alarm["AlarmName"].rpartition("/")[2] for alarm in alarms if alarm["StateValue"] == "ALARM"}
    assert raised >= {"open-round-errors", "record-update-errors", "execution-failed", "events-lost"}
    assert {alarm["StateValue"] for alarm in alarms} == {"ALARM", "OK"}

    # A scheduled round fails like one that a person starts.
    local_aws.advance(3600)

    def scheduled() -> bool:
        listed = account.step_functions.list_executions(stateMachineArn=account.stack.state_machine_arn)["executions"]
        arns = [execution["executionArn"] for execution in listed if execution["status"] == "FAILED"]
        inputs = [account.step_functions.describe_execution(executionArn=arn)["input"] for arn in arns]
        return {"rounds": 2} in map(json.loads, inputs)

    eventually(scheduled, "a scheduled execution that failed")


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"requestContext": {}}', '{"requestContext": {"functionArn": "x"}}', "\x00"]
)
def test_a_message_of_another_kind_is_shown_as_it_is(body: str) -> None:
    read = _read({"Body": body, "Attributes": {"SentTimestamp": "0"}})
    assert read == LostEvent("1970-01-01 00:00:00", "EventBridge", "the event could not be delivered", body)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (None, "no cause was given"),
        ("plain", "plain"),
        ('{"errorMessage": "m", "errorType": "E"}', "E: m"),
        ('{"errorMessage": "m"}', "error: m"),
        ("[1]", "[1]"),
    ],
)
def test_a_cause_is_told_in_words(cause: Any, words: str) -> None:
    assert in_words(cause) == words
