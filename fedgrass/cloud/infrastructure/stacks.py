"""A stack of CloudFormation's: as it is described, and waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from botocore.exceptions import ClientError, WaiterError

from fedgrass.cloud.infrastructure.script import is_gone
from fedgrass.errors import InfrastructureError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import StackTypeDef

_BEGUN = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}


def described_stack(cloudformation: CloudFormationClient, name: str) -> StackTypeDef | None:
    """Return the stack as CloudFormation describes it; None if there is none."""
    try:
        return cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if not is_gone(error):
            raise
        return None


Condition = Literal["stack_create_complete", "stack_update_complete", "stack_delete_complete"]


def wait(cloudformation: CloudFormationClient, name: str, condition: Condition) -> None:
    """Wait up to 20 minutes for a stack.

    Parameters
    ----------
    cloudformation
        The boto3 client.
    name
        The stack's name.
    condition
        Name of boto3's waiter, such as ``stack_update_complete``.

    Raises
    ------
    InfrastructureError
        If it fails, with CloudFormation's own reason.
    """
    try:
        # Every 5 s, 240 times: 20 minutes.
        cloudformation.get_waiter(condition).wait(StackName=name, WaiterConfig={"Delay": 5, "MaxAttempts": 240})
    except WaiterError as error:
        raise InfrastructureError(f"stack {name}: {_first_failure(cloudformation, name) or error}") from error


def _first_failure(cloudformation: CloudFormationClient, name: str) -> str | None:
    """Return the reason that CloudFormation gave first, in the last operation; what follows is its consequence."""
    try:
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    except ClientError:
        return None
    first = None
    for event in events:  # the newest first
        if event["ResourceStatus"].endswith("_FAILED"):
            first = f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', event['ResourceStatus'])}"
        elif event["ResourceType"] == "AWS::CloudFormation::Stack" and event["ResourceStatus"] in _BEGUN:
            break
    return first
