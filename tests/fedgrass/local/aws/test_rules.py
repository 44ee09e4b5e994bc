"""Topic rules and EventBridge rules: who gets what."""

import base64
import json
from collections.abc import Mapping
from decimal import Decimal

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.functions import RECORDER, function, role, table
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import eventually


def topic_rule(
    account: LocalAwsProcess, name: str, statement: str, *actions: Mapping[str, object], **more: object
) -> None:
    account.client("iot").create_topic_rule(
        ruleName=name, topicRulePayload={"sql": statement, "actions": list(actions), **more}
    )


def test_a_message_becomes_an_item_with_its_types(local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    put = {"dynamoDBv2": {"roleArn": role(local_aws, "rules"), "putItem": {"tableName": unique}}}
    topic_rule(local_aws, unique, f"SELECT *, topic(3) AS id FROM '{unique}/devices/+/heartbeat' WHERE ok = true", put)
    payload = {"ok": True, "load": 0.25, "n": 3, "list": [1, "a", None], "map": {"x": {"y": False}}}
    with MqttClient(local_aws.mqtt) as device:
        device.publish(f"{unique}/devices/no/heartbeat", {**payload, "ok": False})
        device.publish(f"{unique}/devices/t1/heartbeat", payload)
    assert eventually(lambda: rows.scan()["Items"]) == [{**payload, "id": "t1", "load": Decimal("0.25")}]


def test_a_message_published_by_http_is_handed_to_a_function(local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    arn = function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    topic_rule(
        local_aws,
        unique,
        f"SELECT topic() AS topic, encode(*, 'base64') AS payload FROM '{unique}/#'",
        {"lambda": {"functionArn": arn}},
    )
    local_aws.client("iot-data").publish(topic=f"{unique}/a", qos=1, payload=b"\xffnot json")
    [row] = eventually(lambda: rows.scan()["Items"])
    assert json.loads(row["event"]) == {"topic": f"{unique}/a", "payload": base64.b64encode(b"\xffnot json").decode()}


def test_a_message_is_republished_under_a_topic_made_from_it(local_aws: LocalAwsProcess, unique: str) -> None:
    action = {"republish": {"roleArn": role(local_aws, "rules"), "topic": f"{unique}/copy/${{topic(2)}}", "qos": 1}}
    topic_rule(local_aws, unique, f"SELECT n FROM '{unique}/+'", action)
    with MqttClient(local_aws.mqtt) as client:
        client.subscribe(f"{unique}/copy/#")
        client.publish(f"{unique}/a", {"n": 1, "m": 2})
        message = client.next()
    assert (message.topic, message.json()) == (f"{unique}/copy/a", {"n": 1})


def test_a_failing_action_is_reported_to_the_error_action(local_aws: LocalAwsProcess, unique: str) -> None:
    rules = role(local_aws, "rules")
    error = {"republish": {"roleArn": rules, "topic": f"{unique}/errors", "qos": 1}}
    put = {"dynamoDBv2": {"roleArn": rules, "putItem": {"tableName": f"{unique}-missing"}}}
    topic_rule(local_aws, unique, f"SELECT * FROM '{unique}/in'", put, errorAction=error)
    with MqttClient(local_aws.mqtt) as client:
        client.subscribe(f"{unique}/errors")
        client.publish(f"{unique}/in", {"id": "1"})
        report = client.next().json()
        assert (report["ruleName"], report["topic"]) == (unique, f"{unique}/in")
        assert base64.b64decode(report["base64OriginalPayload"]) == b'{"id": "1"}'
        assert report["failures"][0]["failedAction"] == "dynamoDBv2"
        assert "ResourceNotFoundException" in report["failures"][0]["errorMessage"]
        client.publish(f"{unique}/in", b"not json")
        assert "not a JSON object" in client.next().json()["failures"][0]["errorMessage"]


def test_errors_can_go_to_a_log_group(local_aws: LocalAwsProcess, unique: str) -> None:
    logs = local_aws.client("logs")
    logs.create_log_group(logGroupName=unique)
    error = {"cloudwatchLogs": {"roleArn": role(local_aws, "rules"), "logGroupName": unique}}
    topic_rule(
        local_aws, unique, f"SELECT * FROM '{unique}'", {"lambda": {"functionArn": f"{unique}-no"}}, errorAction=error
    )
    with MqttClient(local_aws.mqtt) as client:
        client.publish(unique, {"n": 1})
    events = eventually(lambda: logs.filter_log_events(logGroupName=unique)["events"])
    assert "Function not found" in events[0]["message"]


def test_a_disabled_rule_does_nothing(local_aws: LocalAwsProcess, unique: str) -> None:
    iot = local_aws.client("iot")
    for name, topic in ((f"{unique}_off", "off"), (f"{unique}_on", "on")):
        action = {"republish": {"roleArn": role(local_aws, "rules"), "topic": f"{unique}/{topic}", "qos": 1}}
        topic_rule(local_aws, name, f"SELECT * FROM '{unique}/in'", action)
    iot.disable_topic_rule(ruleName=f"{unique}_off")
    with MqttClient(local_aws.mqtt) as client:
        client.subscribe(f"{unique}/on", f"{unique}/off")
        client.publish(f"{unique}/in", {"n": 1})
        assert client.next().topic == f"{unique}/on"
        client.nothing_before(f"{unique}/marker")


def test_a_rule_that_cannot_be_read_does_not_stop_the_others(local_aws: LocalAwsProcess, unique: str) -> None:
    action = {"republish": {"roleArn": role(local_aws, "rules"), "topic": f"{unique}/out", "qos": 1}}
    topic_rule(local_aws, f"{unique}_1", f"SELECT machinelearning_predict(x) FROM '{unique}/in'", action)
    topic_rule(local_aws, f"{unique}_2", f"SELECT * FROM '{unique}/in'", action)
    with MqttClient(local_aws.mqtt) as client:
        client.subscribe(f"{unique}/out")
        client.publish(f"{unique}/in", {"n": 1})
        assert client.next().json() == {"n": 1}


def test_an_event_reaches_the_function_and_the_state_machine_that_its_rule_names(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    rows = table(local_aws, unique)
    arn = function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    states = local_aws.client("stepfunctions")
    definition = {"StartAt": "Done", "States": {"Done": {"Type": "Pass", "End": True}}}
    machine = states.create_state_machine(
        name=unique, definition=json.dumps(definition), roleArn=role(local_aws, "states")
    )["stateMachineArn"]
    events = local_aws.client("events")
    events.put_rule(Name=unique, EventPattern=json.dumps({"source": [unique], "detail": {"job": [{"prefix": "a-"}]}}))
    events.put_targets(
        Rule=unique,
        Targets=[
            {"Id": "function", "Arn": arn},
            {
                "Id": "machine",
                "Arn": machine,
                "RoleArn": role(local_aws, "states"),
                "InputTransformer": {"InputPathsMap": {"job": "$.detail.job"}, "InputTemplate": '{"of": "<job>"}'},
            },
        ],
    )
    entries = [{"Source": unique, "DetailType": "Test", "Detail": json.dumps({"job": job})} for job in ("b-1", "a-1")]
    assert events.put_events(Entries=entries)["FailedEntryCount"] == 0
    [row] = eventually(lambda: rows.scan()["Items"])
    event = json.loads(row["event"])
    assert (event["detail-type"], event["detail"], event["account"]) == ("Test", {"job": "a-1"}, "123456789012")
    [execution] = eventually(lambda: states.list_executions(stateMachineArn=machine)["executions"])
    described = states.describe_execution(executionArn=execution["executionArn"])
    assert json.loads(described["input"]) == {"of": "a-1"}


def test_a_disabled_or_scheduled_rule_is_not_taken_for_one_that_matches(
    local_aws: LocalAwsProcess, unique: str
) -> None:
    rows = table(local_aws, unique)
    arn = function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    events = local_aws.client("events")
    pattern = json.dumps({"source": [unique]})
    events.put_rule(Name=f"{unique}-off", EventPattern=pattern, State="DISABLED")
    events.put_rule(Name=f"{unique}-hourly", ScheduleExpression="rate(1 hour)")
    events.put_rule(Name=f"{unique}-on", EventPattern=pattern)
    for rule, text in (("off", '"off"'), ("hourly", '"hourly"'), ("on", '"on"')):
        events.put_targets(Rule=f"{unique}-{rule}", Targets=[{"Id": "1", "Arn": arn, "Input": text}])
    events.put_events(Entries=[{"Source": unique, "DetailType": "Test", "Detail": "{}"}])
    eventually(lambda: rows.scan()["Items"])
    assert [json.loads(row["event"]) for row in rows.scan()["Items"]] == ["on"]
