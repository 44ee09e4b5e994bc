"""State machines with real Lambda functions behind them."""

import json
from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.functions import RECORDER, function, role, table
from tests.fixtures.waiting import PATIENCE, eventually

CALLBACK = """
    import json
    import boto3

    states = boto3.client("stepfunctions")

    def handler(event, context):
        if event["answer"]:
            states.send_task_success(taskToken=event["token"], output=json.dumps({"answered": True}))
"""


class Machine:
    """A state machine and one execution of it at a time."""

    def __init__(self, account: LocalAwsProcess, name: str, states: dict[str, Any]) -> None:
        self.client = account.client("stepfunctions")
        definition = json.dumps({"StartAt": next(iter(states)), "States": states})
        created = self.client.create_state_machine(name=name, definition=definition, roleArn=role(account, "states"))
        self.arn = created["stateMachineArn"]

    def start(self, execution_input: Any) -> str:
        started = self.client.start_execution(stateMachineArn=self.arn, input=json.dumps(execution_input))
        execution: str = started["executionArn"]
        return execution

    def ended(self, execution: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self.client.describe_execution(executionArn=execution)
            return found if found["status"] != "RUNNING" else None

        found = eventually(ended)
        assert found is not None
        return found

    def run(self, execution_input: Any) -> dict[str, Any]:
        return self.ended(self.start(execution_input))


@pytest.fixture
def waiting_machine(local_aws: LocalAwsProcess, unique: str) -> Machine:
    function(local_aws, unique, CALLBACK)
    states = {
        "Wait": {
            "Type": "Task",
            "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
            "Parameters": {"FunctionName": unique, "Payload": {"answer.$": "$.answer", "token.$": "$$.Task.Token"}},
            "TimeoutSecondsPath": "$.timeout",
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Caught"}],
            "End": True,
        },
        "Caught": {"Type": "Pass", "End": True},
    }
    return Machine(local_aws, unique, states)


def test_a_task_runs_the_function_and_gets_its_answer(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "def handler(event, context): return {'twice': event['n'] * 2}")
    task = {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Parameters": {"FunctionName": unique, "Payload.$": "$"},
        "OutputPath": "$.Payload",
        "End": True,
    }
    ended = Machine(local_aws, unique, {"Double": task}).run({"n": 4})
    assert (ended["status"], json.loads(ended["output"])) == ("SUCCEEDED", {"twice": 8})


def test_a_functions_exception_is_caught_by_its_class(local_aws: LocalAwsProcess, unique: str) -> None:
    function(local_aws, unique, "class Refused(Exception): pass\ndef handler(event, context): raise Refused('no')")
    states = {
        "Try": {
            "Type": "Task",
            "Resource": "arn:aws:states:::lambda:invoke",
            "Parameters": {"FunctionName": unique},
            "Catch": [{"ErrorEquals": ["Refused"], "Next": "Caught"}],
            "End": True,
        },
        "Caught": {"Type": "Pass", "End": True},
    }
    ended = Machine(local_aws, unique, states).run({})
    assert ended["status"] == "SUCCEEDED"
    assert json.loads(ended["output"])["Error"] == "Refused"


def test_a_task_token_completes_the_task(waiting_machine: Machine) -> None:
    ended = waiting_machine.run({"answer": True, "timeout": int(PATIENCE)})
    assert (ended["status"], json.loads(ended["output"])) == ("SUCCEEDED", {"answered": True})


def test_without_an_answer_the_task_times_out_and_is_caught(waiting_machine: Machine) -> None:
    ended = waiting_machine.run({"answer": False, "timeout": 1})
    assert ended["status"] == "SUCCEEDED"
    assert json.loads(ended["output"])["error"]["Error"] == "States.Timeout"


def test_a_stopped_execution_is_aborted_before_its_task_ends_and_without_its_catch(waiting_machine: Machine) -> None:
    execution = waiting_machine.start({"answer": False, "timeout": 100 * int(PATIENCE)})
    history = waiting_machine.client.get_execution_history
    eventually(lambda: "TaskSubmitted" in [event["type"] for event in history(executionArn=execution)["events"]])
    waiting_machine.client.stop_execution(executionArn=execution, error="Cancelled", cause="by the operator")
    ended = waiting_machine.ended(execution)
    assert (ended["status"], ended.get("error"), ended.get("cause")) == ("ABORTED", "Cancelled", "by the operator")
    kinds = [event["type"] for event in history(executionArn=execution)["events"]]
    assert kinds[-1] == "ExecutionAborted"
    assert "PassStateEntered" not in kinds


def test_executions_without_a_name_are_told_apart(local_aws: LocalAwsProcess, unique: str) -> None:
    machine = Machine(local_aws, unique, {"Done": {"Type": "Pass", "End": True}})
    assert machine.start({}) != machine.start({})


def test_dynamodb_and_its_condition_failures_are_seen(local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    lock = {
        "Type": "Task",
        "Resource": "arn:aws:states:::dynamodb:putItem",
        "Parameters": {
            "TableName": unique,
            "Item": {"id": {"S.$": "$.id"}},
            "ConditionExpression": "attribute_not_exists(id)",
        },
        "Catch": [{"ErrorEquals": ["DynamoDB.ConditionalCheckFailedException"], "Next": "Taken"}],
        "End": True,
    }
    machine = Machine(local_aws, unique, {"Lock": lock, "Taken": {"Type": "Fail", "Error": "Taken"}})
    assert machine.run({"id": "lock"})["status"] == "SUCCEEDED"
    assert rows.scan()["Count"] == 1
    assert machine.run({"id": "lock"})["error"] == "Taken"


def test_how_an_execution_ends_is_an_event(local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    arn = function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    machine = Machine(local_aws, unique, {"No": {"Type": "Fail", "Error": "Broken", "Cause": "on purpose"}})
    events = local_aws.client("events")
    pattern = {"source": ["aws.states"], "detail": {"stateMachineArn": [machine.arn], "status": ["FAILED", "ABORTED"]}}
    events.put_rule(Name=unique, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=unique, Targets=[{"Id": "1", "Arn": arn}])
    execution = machine.start({"n": 1})
    [row] = eventually(lambda: rows.scan()["Items"])
    event = json.loads(row["event"])
    assert event["detail-type"] == "Step Functions Execution Status Change"
    assert event["detail"]["executionArn"] == execution
    assert (event["detail"]["status"], event["detail"]["error"]) == ("FAILED", "Broken")
    assert json.loads(event["detail"]["input"]) == {"n": 1}
