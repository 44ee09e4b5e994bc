from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from botocore.loaders import Loader

from fedgrass.cloud.infrastructure.deploy import check, deploy
from fedgrass.cloud.infrastructure.destroy import destroy
from fedgrass.cloud.infrastructure.states import check_changeable
from fedgrass.cloudformation import StackOutputs, stack_name, stack_outputs
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.doubles import double
from tests.fixtures.local_aws import local_aws, unique

__all__ = ["local_aws", "unique"]

CLOUDFORMATION = Loader().load_service_model("cloudformation", "service-2")

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def session(local_aws: LocalAwsProcess, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    return boto3.Session()


def test_a_fleet_is_deployed_updated_and_removed(session: Any, unique: str) -> None:
    component = f"com.fedgrass.GlobalModel.{unique}"
    parameters = {"LogRetentionDays": "30", "ModelComponent": component}
    outputs = deploy(session, fleet=unique, parameters=parameters, dependencies=False)
    assert outputs == stack_outputs(session, unique)
    assert outputs.state_machine_arn.endswith(f":stateMachine:fedgrass-{unique}-round")
    assert outputs.thing_group_arn.endswith(f":thinggroup/{unique}")
    alias = session.client("iot").describe_role_alias(roleAlias=outputs.token_exchange_role_alias)
    assert alias["roleAliasDescription"]["roleArn"] == outputs.token_exchange_role_arn
    machine = session.client("stepfunctions").describe_state_machine(stateMachineArn=outputs.state_machine_arn)
    assert "${" not in machine["definition"]
    assert json.loads(machine["definition"])["StartAt"] == "Asked"

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
    [
        ("UPDATE_IN_PROGRESS", "wait"),
        ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "wait"),
        ("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", "wait"),
        ("CREATE_FAILED", "no fleet yet.*scripts/destroy --fleet digits"),
        ("ROLLBACK_COMPLETE", "no fleet yet.*scripts/destroy --fleet digits"),
        ("ROLLBACK_FAILED", "no fleet yet.*scripts/destroy --fleet digits"),
        ("DELETE_FAILED", "being removed: run scripts/destroy again"),
        ("REVIEW_IN_PROGRESS", "change set.*delete-stack"),
        ("UPDATE_ROLLBACK_FAILED", "goes on as it is.*continue-update-rollback.*Do not delete"),
        ("UPDATE_FAILED", "goes on as it is.*rollback-stack"),
        ("IMPORT_ROLLBACK_FAILED", "Do not delete"),
        ("SOMETHING_NEW", "do not delete"),
    ],
)
def test_a_stack_in_no_state_to_be_changed_says_what_to_do(status: str, advice: str) -> None:
    with pytest.raises(InfrastructureError, match=f"{status}.*{advice}") as refused:
        deploy(double(_CloudFormation(status)), fleet="digits", dependencies=False)
    lives = not status.startswith(("CREATE_", "ROLLBACK_", "DELETE_"))
    assert not lives or "scripts/destroy" not in str(refused.value)


STATES = set(CLOUDFORMATION["shapes"]["StackStatus"]["enum"])


@pytest.mark.parametrize("status", sorted(STATES))
def test_every_state_that_cloudformation_knows_can_be_updated_or_says_what_to_do(status: str) -> None:
    try:
        check_changeable("fedgrass-digits", "digits", status)
    except InfrastructureError as refused:
        assert "not known here" not in str(refused)  # noqa: PT017 - either is right
    else:
        assert status.endswith("_COMPLETE")


def test_a_stack_without_its_outputs_says_so() -> None:
    with pytest.raises(InfrastructureError, match=r"lacks the outputs Bucket, .*deploy it again"):
        stack_outputs(double(_CloudFormation("CREATE_COMPLETE")), "digits")


def test_underscores_in_a_fleet_s_name_are_none_in_its_stack_s() -> None:
    assert stack_name("my_fleet") == "fedgrass--my-ufleet"


def test_a_stack_that_says_it_is_another_fleet_s_is_left_alone() -> None:
    class Other(_CloudFormation):
        def describe_stacks(self, *, StackName: str) -> Any:  # noqa: N803 - boto3's name
            [stack] = super().describe_stacks(StackName=StackName)["Stacks"]
            return {"Stacks": [{**stack, "Parameters": [{"ParameterKey": "Fleet", "ParameterValue": "other"}]}]}

    with pytest.raises(InfrastructureError, match="is of fleet 'other', not of 'digits'"):
        stack_outputs(double(Other("CREATE_COMPLETE")), "digits")
    with pytest.raises(InfrastructureError, match="is of fleet 'other', not of 'digits'"):
        check(double(Other("CREATE_COMPLETE")), "digits", {})


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
