"""A fleet's resources in the account that the environment names, found through its stack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import typer

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.names import check_fleet
from fedgrass.stack import StackOutputs, stack_outputs

FleetOption = Annotated[
    str,
    typer.Option("--fleet", "-f", envvar="FEDGRASS_FLEET", help="The fleet: a thing group's name.", show_default=True),
]
DEFAULT_FLEET = "fedgrass"


@dataclass(frozen=True)
class Account:
    """The caller's AWS account, seen from one fleet."""

    fleet: str
    session: Any

    @classmethod
    def of(cls, fleet: str) -> Account:
        """Return the account of the environment; raises `ConfigurationError` without a region."""
        import boto3

        # AWS_REGION is what Greengrass and Lambda set; boto3 itself reads only AWS_DEFAULT_REGION.
        session = boto3.session.Session(region_name=os.environ.get("AWS_REGION"))
        if session.region_name is None:
            raise ConfigurationError("no AWS region: set AWS_REGION, or a region in the profile")
        return cls(check_fleet(fleet), session)

    @cached_property
    def stack(self) -> StackOutputs:
        """What the fleet's stack consists of; raises `InfrastructureError` if it is not deployed."""
        return stack_outputs(self.session, self.fleet)

    @cached_property
    def rounds_table(self) -> Any:
        """The table of rounds."""
        return self.session.resource("dynamodb").Table(self.stack.rounds_table)

    @cached_property
    def devices_table(self) -> Any:
        """The table of devices."""
        return self.session.resource("dynamodb").Table(self.stack.devices_table)

    @cached_property
    def step_functions(self) -> Any:
        """Client of Step Functions."""
        return self.session.client("stepfunctions")
