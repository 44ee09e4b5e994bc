from __future__ import annotations

import json
from typing import Any

import boto3
import pytest

from cloud.infrastructure.deploy import deploy
from cloud.infrastructure.destroy import destroy
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.stack import StackOutputs, stack_name, stack_outputs
from local.aws.client import LocalAwsProcess
from tests.fixtures.local_aws import local_aws, unique

__all__ = ["local_aws", "unique"]

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def session(local_aws: LocalAwsProcess, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    return boto3.Session()


def test_a_fleet_is_deployed_updated_and_removed(session: Any, unique: str) -> None:
    outputs = deploy(session, fleet=unique, parameters={"LogRetentionDays": "30"}, dependencies=False)
    assert outputs == stack_outputs(session, unique)
    assert outputs.state_machine_arn.endswith(f":stateMachine:fedgrass-{unique}-round")
    assert outputs.thing_group_arn.endswith(f":thinggroup/{unique}")
    alias = session.client("iot").describe_role_alias(roleAlias=outputs.token_exchange_role_alias)
    assert alias["roleAliasDescription"]["roleArn"] == outputs.token_exchange_role_arn
    machine = session.client("stepfunctions").describe_state_machine(stateMachineArn=outputs.state_machine_arn)
    assert "${" not in machine["definition"]
    assert json.loads(machine["definition"])["StartAt"] == "Begin"

    assert deploy(session, fleet=unique, dependencies=False) == outputs
    [stack] = session.client("cloudformation").describe_stacks(StackName=stack_name(unique))["Stacks"]
    kept = {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in stack["Parameters"]}
    assert kept["LogRetentionDays"] == "30"  # the template's own is 90

    session.client("s3").put_object(Bucket=outputs.bucket, Key=f"models/{unique}/x", Body=b"x")
    assert destroy(session, fleet=unique)
    with pytest.raises(InfrastructureError, match="deploy it first"):
        stack_outputs(session, unique)
    assert not destroy(session, fleet=unique)


def test_a_name_that_no_thing_group_can_have_is_refused_before_anything_is_made(session: Any) -> None:
    with pytest.raises(ConfigurationError, match="fleet 'a b'"):
        deploy(session, fleet="a b", dependencies=False)


class _CloudFormation:
    """Answers as if the stack were in one state, and fails on any change."""

    def __init__(self, status: str) -> None:
        self._status = status

    def client(self, _name: str) -> _CloudFormation:
        return self

    def describe_stacks(self, *, StackName: str) -> Any:  # noqa: N803 - boto3's name
        return {"Stacks": [{"StackName": StackName, "StackStatus": self._status}]}


@pytest.mark.parametrize(
    ("status", "advice"),
    [("UPDATE_IN_PROGRESS", "wait"), ("ROLLBACK_COMPLETE", "remove it"), ("DELETE_FAILED", "remove it")],
)
def test_a_stack_in_no_state_to_be_changed_says_what_to_do(status: str, advice: str) -> None:
    with pytest.raises(InfrastructureError, match=f"{status}.*{advice}"):
        deploy(_CloudFormation(status), fleet="digits", dependencies=False)


def test_a_stack_without_its_outputs_says_so() -> None:
    with pytest.raises(InfrastructureError, match=r"lacks the outputs Bucket, .*deploy it again"):
        stack_outputs(_CloudFormation("CREATE_COMPLETE"), "digits")


def test_underscores_in_a_fleet_s_name_are_none_in_its_stack_s() -> None:
    assert stack_name("my_fleet") == "fedgrass-my-fleet"


def test_outputs_are_what_the_demo_and_the_command_line_need() -> None:
    assert set(StackOutputs.__dataclass_fields__) == {
        "fleet",
        "bucket",
        "devices_table",
        "rounds_table",
        "state_machine_arn",
        "processing_role_arn",
        "token_exchange_role_arn",
        "token_exchange_role_alias",
        "thing_group_arn",
        "model_component",
        "model_package_group",
        "repository_uri",
        "image",
        "image_build_project",
    }
