"""A helper's stack in the account that the environment names: deployed, started, looked at and undone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from fedgrass.checkout import checkout
from fedgrass.cloud.helper.table import KEY
from fedgrass.cloud.infrastructure.stacks import described_stack, wait
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.polling import poll
from fedgrass.protocol.names import check_fleet, fleet_digest

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_cloudformation.type_defs import ParameterTypeDef, StackTypeDef

_NAME = re.compile(r"[a-zA-Z0-9](-?[a-zA-Z0-9])*")
_ROLE = re.compile(r"arn:[a-z-]+:iam::(\d{12}):role/.+")
_LONGEST = 30
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class HelperJob:
    """A job of a helper, as SageMaker tells of it."""

    name: str
    started: datetime
    status: str
    said: str = ""


@dataclass(frozen=True)
class HelperStack:
    """A helper's stack.

    Parameters
    ----------
    session
        A boto3 session of the helper's own account, in the fleet's region.
    helper
        The helper's name there, without the account's number.

    Raises
    ------
    ConfigurationError
        If it cannot be a helper's name.
    """

    session: Session
    helper: str

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.helper) is None or len(self.helper) > _LONGEST:
            raise ConfigurationError(
                f"helper {self.helper!r}: expected 1 to {_LONGEST} letters, digits or single hyphens, without the account's "
                "number"
            )

    @property
    def stack(self) -> str:
        """The stack's name."""
        return f"fedgrass-helper-{self.helper}"

    def deploy(self, fleet: str, role: str, parameters: Mapping[str, str]) -> bool:
        """Create the stack, or change what differs; wait until it is done.

        Parameters
        ----------
        fleet
            The fleet's name.
        role
            ARN of the fleet's role for helpers.
        parameters
            Of the template; those that are left out keep their values.

        Returns
        -------
        bool
            Whether it is a new stack.

        Raises
        ------
        ConfigurationError
            If a name or the role cannot be one.
        InfrastructureError
            If it cannot be deployed, or is of another fleet: a helper's key and what it answered are one fleet's.
        """
        found = _ROLE.fullmatch(role)
        if found is None:
            raise ConfigurationError(
                f"role {role!r}: expected arn:aws:iam::ACCOUNT:role/NAME, the fleet's HelperRoleArn"
            )
        existing = self._described()
        if existing is not None and (of := _given(existing).get("Fleet")) != fleet:
            raise InfrastructureError(f"helper {self.helper!r} is of fleet {of!r}: give that of {fleet!r} another name")
        given = {
            "Helper": self.helper,
            "Fleet": check_fleet(fleet),
            "FleetDigest": fleet_digest(fleet),
            "FleetAccount": found[1],
            "FleetRole": role,
            "FleetRegion": str(self.session.region_name),
            **parameters,
        }
        kept = _given(existing).keys() - given.keys() if existing else set()
        values: list[ParameterTypeDef] = [{"ParameterKey": key, "ParameterValue": given[key]} for key in given]
        values += [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]
        arguments: dict[str, Any] = {
            "StackName": self.stack,
            "TemplateBody": (checkout() / "cloud" / "helper_account.yaml").read_text(),
            "Parameters": values,
            "Capabilities": ["CAPABILITY_IAM"],
            "Tags": [{"Key": "fedgrass:helper", "Value": self.helper}],
        }
        if existing is None:
            self._cloudformation.create_stack(**arguments)
            wait(self._cloudformation, self.stack, "stack_create_complete")
            return True
        try:
            self._cloudformation.update_stack(**arguments)
        except ClientError as error:
            # CloudFormation has no error code of its own for it.
            if "No updates are to be performed" not in str(error):
                raise
        else:
            wait(self._cloudformation, self.stack, "stack_update_complete")
        return False

    def output(self, name: str) -> str:
        """Return an output of the stack; raises `InfrastructureError` if there is no such stack."""
        stack = self._described()
        if stack is None:
            raise InfrastructureError(
                f"helper {self.helper!r}: there is no stack {self.stack} in this account and region; deploy it first "
                "(fedgrass helper deploy)"
            )
        return {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}[name]

    def start(self) -> None:
        """Start a job; where two run already, none."""
        self.session.client("stepfunctions").start_execution(stateMachineArn=self.output("MachineArn"))

    def jobs(self, most: int = 10) -> Iterator[HelperJob]:
        """Yield the last jobs, the newest first."""
        self.output("MachineArn")
        for one in self._sagemaker.list_processing_jobs(NameContains=f"{self.stack}-", MaxResults=most)[
            "ProcessingJobSummaries"
        ]:
            said = one.get("ExitMessage") or one.get("FailureReason") or ""
            yield HelperJob(one["ProcessingJobName"], one["CreationTime"], one["ProcessingJobStatus"], said)

    def stop(self) -> list[str]:
        """Have SageMaker end the jobs that run; returns their names."""
        going = [job.name for job in self.jobs() if job.status == "InProgress"]
        for name in going:
            self._sagemaker.stop_processing_job(ProcessingJobName=name)
        return going

    def key(self, *, wait_seconds: float = 0.0) -> str | None:
        """Return the helper's public key; None if no job has made one within so long."""
        table, dynamodb = self.output("TableName"), self.session.client("dynamodb")
        asked: dict[str, Any] = {"kind": {"S": KEY}, "id": {"S": KEY}}

        def look() -> str | None:
            # Its public half alone: the other one lies beside it, encrypted.
            found = dynamodb.get_item(
                TableName=table,
                Key=asked,
                ConsistentRead=True,
                ProjectionExpression="#p",
                ExpressionAttributeNames={"#p": "public"},
            )
            return found["Item"]["public"]["S"] if "Item" in found else None

        end = time.monotonic() + wait_seconds
        return poll(look, lambda key: key is not None, until=lambda: end, pause=_LOOK_SECONDS)

    def destroy(self) -> bool:
        """Delete the stack with the key and what was answered; returns whether there was one."""
        if self._described() is None:
            return False
        self.stop()
        self._cloudformation.delete_stack(StackName=self.stack)
        wait(self._cloudformation, self.stack, "stack_delete_complete")
        return True

    def _described(self) -> StackTypeDef | None:
        stack = described_stack(self._cloudformation, self.stack)
        # A fleet may be called helper-something, and its stack then as this one.
        if stack is not None and _given(stack).get("Helper") != self.helper:
            raise InfrastructureError(f"stack {self.stack} is no helper's: it is left alone; choose another name")
        return stack

    @cached_property
    def _cloudformation(self) -> Any:
        return self.session.client("cloudformation")

    @cached_property
    def _sagemaker(self) -> Any:
        return self.session.client("sagemaker")


def _given(stack: StackTypeDef) -> dict[str, str]:
    return {one["ParameterKey"]: one.get("ParameterValue", "") for one in stack.get("Parameters", [])}
