"""A fleet's CloudFormation stack as its users see it: its name and what it consists of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fedgrass.errors import InfrastructureError
from fedgrass.protocol.names import check_fleet


@dataclass(frozen=True)
class StackOutputs:
    """What a deployed fleet consists of."""

    fleet: str
    bucket: str
    devices_table: str
    rounds_table: str
    state_machine_arn: str
    processing_role_arn: str
    token_exchange_role_arn: str
    token_exchange_role_alias: str
    thing_group_arn: str
    model_component: str
    model_package_group: str
    repository_uri: str
    image: str
    image_build_project: str


def stack_name(fleet: str) -> str:
    """Name of the fleet's stack; CloudFormation allows no underscores."""
    return f"fedgrass-{fleet.replace('_', '-')}"


def stack_outputs(session: Any, fleet: str) -> StackOutputs:
    """Return what the fleet's stack consists of; raises `InfrastructureError` if it is not deployed."""
    name = stack_name(check_fleet(fleet))
    cloudformation = session.client("cloudformation")
    try:
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except cloudformation.exceptions.ClientError as error:
        if "does not exist" not in str(error):
            raise
        raise InfrastructureError(f"fleet {fleet!r}: there is no stack {name}; deploy it first") from error
    found = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    wanted = {
        field.name: field.name.title().replace("_", "") for field in fields(StackOutputs) if field.name != "fleet"
    }
    missing = sorted(set(wanted.values()) - found.keys())
    if missing:
        raise InfrastructureError(
            f"stack {name} ({stack['StackStatus']}) lacks the outputs {', '.join(missing)}; deploy it again"
        )
    return StackOutputs(fleet=fleet, **{field: found[output] for field, output in wanted.items()})
