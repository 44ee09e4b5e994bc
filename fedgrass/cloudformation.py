"""A fleet's CloudFormation stack as its users see it: its name and what it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fedgrass.errors import InfrastructureError
from fedgrass.protocol.names import check_fleet

if TYPE_CHECKING:
    from boto3 import Session


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

    @property
    def account(self) -> str:
        """Number of the account."""
        # arn:partition:iot:region:ACCOUNT:…
        return self.thing_group_arn.split(":")[4]


def stack_name(fleet: str) -> str:
    """Return the name of the fleet's stack, which is not any other fleet's.

    CloudFormation allows no underscores: a name that has any follows two hyphens, which no other begins with, and is written
    with ``-u`` for each of them and ``--`` for a hyphen.

    >>> stack_name("mill-north"), stack_name("mill_north")
    ('fedgrass-mill-north', 'fedgrass--mill-unorth')
    """
    if "_" not in fleet:
        return f"fedgrass-{fleet}"
    return f"fedgrass--{fleet.replace('-', '--').replace('_', '-u')}"


def stack_outputs(session: Session, fleet: str) -> StackOutputs:
    """Return what the fleet's stack consists of.

    Raises
    ------
    InfrastructureError
        If it is not deployed, lacks an output, or says that it is another fleet's.
    """
    name = stack_name(check_fleet(fleet))
    cloudformation = session.client("cloudformation")
    try:
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except cloudformation.exceptions.ClientError as error:
        if "does not exist" not in str(error):
            raise
        raise InfrastructureError(f"fleet {fleet!r}: there is no stack {name}; deploy it first") from error
    # Names follow from fleets' names, but a stack of that name may have been made by hand for another.
    check_owner(stack, fleet)
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


def stack_output(session: Session, fleet: str, name: str) -> str | None:
    """Read one output of the fleet's stack.

    Parameters
    ----------
    session
        A boto3 session.
    fleet
        The fleet's name.
    name
        The output's key.

    Returns
    -------
    str or None
        None if the stack has no such output.
    """
    found = session.client("cloudformation").describe_stacks(StackName=stack_name(fleet))["Stacks"][0]
    outputs = {output["OutputKey"]: str(output["OutputValue"]) for output in found.get("Outputs", [])}
    return outputs.get(name)


def check_owner(stack: Mapping[str, Any], fleet: str) -> None:
    """Raise `InfrastructureError` if a stack that CloudFormation describes says that it is another fleet's."""
    owners = [given["ParameterValue"] for given in stack.get("Parameters", []) if given["ParameterKey"] == "Fleet"]
    if owners not in ([], [fleet]):
        raise InfrastructureError(
            f"stack {stack['StackName']} is of fleet {owners[0]!r}, not of {fleet!r}: it is left alone"
        )
