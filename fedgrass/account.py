"""A fleet's resources in the account that the environment names, found through its stack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedgrass.buckets import owned_by
from fedgrass.cloudformation import StackOutputs, stack_outputs
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.names import check_fleet

if TYPE_CHECKING:
    from boto3 import Session
    from botocore.config import Config
    from mypy_boto3_dynamodb.service_resource import Table
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

DEFAULT_FLEET = "fedgrass"


@dataclass(frozen=True)
class Account:
    """The caller's AWS account, seen from one fleet."""

    fleet: str
    session: Session

    @classmethod
    def of(cls, fleet: str, config: Config | None = None) -> Account:
        """Return the account of the environment; raises `ConfigurationError` without a region.

        Parameters
        ----------
        config
            A ``botocore.config.Config`` for every client; botocore's defaults if None.
        """
        # Imported here: commands that only print help need not wait for it.
        import boto3
        import botocore.session

        # botocore's own session takes a configuration for every client; boto3's has none to give.
        core = botocore.session.Session()
        if config is not None:
            core.set_default_client_config(config)
        # AWS_REGION is what Greengrass and Lambda set; boto3 itself reads only AWS_DEFAULT_REGION.
        session = boto3.session.Session(region_name=os.environ.get("AWS_REGION"), botocore_session=core)
        if session.region_name is None:
            raise ConfigurationError("no AWS region: set AWS_REGION, or a region in the profile")
        return cls(check_fleet(fleet), session)

    @cached_property
    def stack(self) -> StackOutputs:
        """What the fleet's stack consists of; raises `InfrastructureError` if it is not deployed."""
        return stack_outputs(self.session, self.fleet)

    @cached_property
    def rounds_table(self) -> Table:
        """The table of rounds."""
        return self.session.resource("dynamodb").Table(self.stack.rounds_table)

    @cached_property
    def devices_table(self) -> Table:
        """The table of devices."""
        return self.session.resource("dynamodb").Table(self.stack.devices_table)

    @cached_property
    def step_functions(self) -> SFNClient:
        """Client of Step Functions."""
        return self.session.client("stepfunctions")

    @cached_property
    def s3(self) -> S3Client:
        """Client of S3, for the account's own buckets."""
        return owned_by(self.session.client("s3"), self.stack.account)
