from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cfnlint import decode
from cfnlint.api import lint_file

from fedgrass.protocol.names import model_prefix, partial_prefix, report_prefix, sum_request_key, update_prefix
from tests.fixtures.places import DEFINITION, ROOT, TEMPLATE

HANDLERS = sorted(
    path.stem for path in (ROOT / "fedgrass/cloud/rounds").glob("*.py") if "\ndef handler(" in path.read_text()
)


@pytest.fixture(scope="module")
def template() -> Any:
    document, problems = decode.decode(str(TEMPLATE))
    assert not problems
    return json.loads(json.dumps(document))


@pytest.fixture(scope="module")
def resources(template: Any) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"]
    return found


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}


def statements(role: Any) -> list[Any]:
    return [statement for policy in role.get("Policies", []) for statement in policy["PolicyDocument"]["Statement"]]


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATE.parent.glob("*.yaml")))
def test_cfn_lint_finds_nothing(name: str) -> None:
    assert [str(match) for match in lint_file(TEMPLATE.with_name(name))] == []


def test_the_template_is_small_enough_for_cloudformation() -> None:
    assert TEMPLATE.stat().st_size <= 1_000_000


def test_every_handler_is_a_function_and_every_function_a_handler(resources: dict[str, Any]) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    assert sorted(properties["Handler"] for properties in functions.values()) == [
        f"fedgrass.cloud.rounds.{name}.handler" for name in HANDLERS
    ]


def test_every_function_has_a_role_of_its_own(resources: dict[str, Any]) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    roles = [json.dumps(properties["Role"]) for properties in functions.values()]
    assert len(set(roles)) == len(roles) == len(HANDLERS)


def test_the_state_machine_calls_only_functions_that_it_is_given_and_may_invoke(resources: dict[str, Any]) -> None:
    (machine,) = of_type(resources, "AWS::StepFunctions::StateMachine").values()
    named = set(re.findall(r"\$\{(\w+)\}", DEFINITION.read_text()))
    assert named == set(machine["DefinitionSubstitutions"])
    allowed = statements(resources["StateMachineRole"]["Properties"])[0]["Resource"]
    assert {entry["Fn::GetAtt"][0] for entry in allowed} == named - {"Partition"}


def test_the_state_machine_names_no_partition() -> None:
    assert "arn:aws:" not in DEFINITION.read_text()


@pytest.mark.parametrize("name", HANDLERS)
def test_a_function_has_each_setting_that_its_code_reads(resources: dict[str, Any], name: str) -> None:
    (function,) = [
        properties
        for properties in of_type(resources, "AWS::Lambda::Function").values()
        if properties["Handler"] == f"fedgrass.cloud.rounds.{name}.handler"
    ]
    code = reachable_code(name)
    needs = {"FEDGRASS_FLEET", "FEDGRASS_ROUNDS_TABLE", *re.findall(r'setting\("(FEDGRASS_\w+)"\)', code)}
    needs |= {"FEDGRASS_BUCKET"} if "services.bucket" in code else set()
    needs |= {"FEDGRASS_DEVICES_TABLE"} if "services.devices" in code else set()
    assert needs <= set(function["Environment"]["Variables"])


def reachable_code(name: str) -> str:
    """Return the code of a handler's module and of the package's modules that it imports, however far."""
    seen: dict[str, str] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in seen and module != "services":
            seen[module] = (ROOT / f"fedgrass/cloud/rounds/{module}.py").read_text()
            waiting += re.findall(r"from cloud\.rounds\.(\w+) import", seen[module])
    return "\n".join(seen.values())


def test_every_log_group_forgets_and_every_bucket_is_private_encrypted_and_versioned(resources: dict[str, Any]) -> None:
    assert all("RetentionInDays" in group for group in of_type(resources, "AWS::Logs::LogGroup").values())
    (bucket,) = of_type(resources, "AWS::S3::Bucket").values()
    rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
    assert rules["partial-sums"]["Prefix"] == "partial/"
    assert "AbortIncompleteMultipartUpload" in rules["unfinished-uploads"]
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "BucketEncryption" in bucket


def test_every_topic_rule_says_where_its_errors_go(resources: dict[str, Any]) -> None:
    rules = of_type(resources, "AWS::IoT::TopicRule")
    assert len(rules) == 6
    assert all("ErrorAction" in rule["TopicRulePayload"] for rule in rules.values())


def test_what_outlives_the_stack_does_not_outlive_a_creation_that_failed(template: Any) -> None:
    policies = {name: resource.get("DeletionPolicy") for name, resource in template["Resources"].items()}
    assert {name for name, policy in policies.items() if policy == "RetainExceptOnCreate"} == {
        "Bucket",
        "ModelPackageGroup",
    }
    assert "Retain" not in policies.values()


def test_what_outlives_the_stack_says_whose_it_is(resources: dict[str, Any]) -> None:
    for name in ("Bucket", "ModelPackageGroup"):
        assert resources[name]["Properties"]["Tags"] == [{"Key": "fedgrass:fleet", "Value": {"Ref": "Fleet"}}]


def test_every_function_that_is_called_by_events_keeps_what_it_failed_at(resources: dict[str, Any]) -> None:
    permissions = of_type(resources, "AWS::Lambda::Permission").values()
    called = {permission["FunctionName"]["Ref"] for permission in permissions} - {
        "ClaimDeviceFunction"
    }  # is waited for
    kept = of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
    assert {entry["FunctionName"]["Ref"] for entry in kept} == called
    for entry in kept:
        assert entry["DestinationConfig"] == {"OnFailure": {"Destination": {"Fn::GetAtt": ["Failures", "Arn"]}}}


def test_every_function_s_errors_and_every_failed_execution_raise_an_alarm(resources: dict[str, Any]) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm").values()
    watched = {
        (alarm["Namespace"], alarm["MetricName"], alarm["Dimensions"][0]["Value"].get("Ref")) for alarm in alarms
    }
    functions = of_type(resources, "AWS::Lambda::Function")
    assert {("AWS/Lambda", "Errors", name) for name in functions} <= watched | {
        ("AWS/Lambda", "Errors", "ClaimDeviceFunction")  # a device that is refused is told so
    }
    assert {
        ("AWS/States", "ExecutionsFailed", "StateMachine"),
        ("AWS/States", "ExecutionsTimedOut", "StateMachine"),
    } <= watched
    assert ("AWS/Events", "FailedInvocations", "RoundSchedule") in watched
    assert all(alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}] for alarm in alarms)


def test_the_state_machine_is_logged_and_alarms_are_encrypted(resources: dict[str, Any]) -> None:
    (machine,) = of_type(resources, "AWS::StepFunctions::StateMachine").values()
    assert machine["LoggingConfiguration"]["Level"] == "ALL"
    assert resources["AlarmTopic"]["Properties"]["KmsMasterKeyId"] == {"Ref": "AlarmKey"}
    [alarms] = [
        statement
        for statement in resources["AlarmKey"]["Properties"]["KeyPolicy"]["Statement"]
        if statement["Sid"] == "Alarms"
    ]
    assert alarms["Principal"] == {"Service": "cloudwatch.amazonaws.com"}


def test_the_lifecycle_ends_what_a_job_leaves_where_the_job_leaves_it(resources: dict[str, Any]) -> None:
    rules = resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    (rule,) = [rule for rule in rules if rule["Id"] == "partial-sums"]
    assert partial_prefix("digits", 1).startswith(rule["Prefix"])
    assert not any(prefix("digits", 1).startswith(rule["Prefix"]) for prefix in (report_prefix, update_prefix))
    assert (rule["Status"], rule["ExpirationInDays"]) == ("Enabled", 2)


def test_what_helpers_were_asked_lingers_no_longer_than_updates(resources: dict[str, Any]) -> None:
    rules = {rule["Id"]: rule for rule in resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]}
    rule, updates = rules["secure-sums"], rules["updates"]
    assert sum_request_key("digits", 7, "press-1").startswith(rule["Prefix"])
    kept = (report_prefix("digits", 1), update_prefix("digits", 1), model_prefix("digits", "1.0.0"))
    assert not any(key.startswith(rule["Prefix"]) for key in kept)
    same = ("Status", "ExpirationInDays", "NoncurrentVersionExpiration")
    assert [rule[name] for name in same] == [updates[name] for name in same]
    assert rule["ExpirationInDays"] == {"Ref": "UpdateRetentionDays"}
