"""The functions' services: the fleet's names, and clients that are made when first used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache, cached_property
from typing import TYPE_CHECKING

from botocore.config import Config

from fedgrass.buckets import owned_by
from fedgrass.cloud.ending.place import Place
from fedgrass.cloud.session import known_session
from fedgrass.errors import ConfigurationError
from fedgrass.logs import configure
from fedgrass.protocol.tables import Table

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_dynamodb import DynamoDBServiceResource
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_iot import IoTClient
    from mypy_boto3_iot_data import IoTDataPlaneClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_stepfunctions import SFNClient


def _now() -> datetime:
    return datetime.now(timezone.utc)


class Services:
    """The fleet's part of an AWS account.

    Parameters
    ----------
    session
        A boto3 session; clients follow AWS_ENDPOINT_URL like any other.
    environment
        ``FEDGRASS_FLEET``, ``_ACCOUNT``, ``_BUCKET``, ``_ROUNDS_TABLE``, ``_DEVICES_TABLE``, and for the Processing job
        ``_JOB_ROLE_ARN``, ``_IMAGE``, ``_THING_GROUP_ARN``, ``_MODEL_COMPONENT``, ``_MODEL_PACKAGE_GROUP``,
        ``_INSTANCE_TYPE``, ``_INSTANCE_COUNT``, and, where it runs in a VPC, ``_SUBNETS`` and ``_SECURITY_GROUPS``; for
        what starts executions ``_STATE_MACHINE_ARN``, and ``_ROUNDS_OF_AN_EXECUTION``. A function is given only those that it
        needs.
    clock
        Returns the present time, with its zone.
    """

    def __init__(
        self, session: Session, environment: Mapping[str, str], *, clock: Callable[[], datetime] = _now
    ) -> None:
        self._session = session
        self._environment = environment
        self.now = clock

    def setting(self, name: str) -> str:
        """Return an environment variable; raises `ConfigurationError` if it is not set."""
        value = self._environment.get(name)
        if not value:
            raise ConfigurationError(f"{name} is not set for this function; deploy the fleet's stack again")
        return value

    def names(self, name: str) -> list[str]:
        """Return the names that an environment variable lists, separated by commas; none if it is not set."""
        return [entry for entry in self._environment.get(name, "").split(",") if entry]

    @cached_property
    def rounds_of_an_execution(self) -> int:
        """How many rounds an execution runs before the next one goes on; its history holds 25,000 events."""
        return int(self._environment.get("FEDGRASS_ROUNDS_OF_AN_EXECUTION") or 500)

    @cached_property
    def fleet(self) -> str:
        """Name of the fleet."""
        return self.setting("FEDGRASS_FLEET")

    @cached_property
    def bucket(self) -> str:
        """Name of the fleet's bucket."""
        return self.setting("FEDGRASS_BUCKET")

    @cached_property
    def rounds(self) -> Table:
        """Return the table of rounds."""
        table: Table = self._dynamodb.Table(self.setting("FEDGRASS_ROUNDS_TABLE"))
        return table

    @cached_property
    def devices(self) -> Table:
        """Return the table of devices."""
        table: Table = self._dynamodb.Table(self.setting("FEDGRASS_DEVICES_TABLE"))
        return table

    @cached_property
    def step_functions(self) -> SFNClient:
        """Client of Step Functions."""
        return self._session.client("stepfunctions", config=_CONFIG)

    @cached_property
    def iot_data(self) -> IoTDataPlaneClient:
        """Client of IoT Core's data plane."""
        return self._session.client("iot-data", config=_CONFIG)

    @cached_property
    def iot(self) -> IoTClient:
        """Client of IoT Core's control plane."""
        return self._session.client("iot", config=_CONFIG)

    @cached_property
    def sagemaker(self) -> SageMakerClient:
        """Client of SageMaker."""
        return self._session.client("sagemaker", config=_CONFIG)

    @cached_property
    def s3(self) -> S3Client:
        """Client of S3, for the account's own buckets."""
        return owned_by(self._session.client("s3", config=_CONFIG), self.setting("FEDGRASS_ACCOUNT"))

    @cached_property
    def greengrass(self) -> GreengrassV2Client:
        """Client of Greengrass."""
        return self._session.client("greengrassv2", config=_CONFIG)

    @cached_property
    def place(self) -> Place:
        """What is needed to end a round."""
        return Place(
            fleet=self.fleet,
            rounds=self.rounds,
            s3=self.s3,
            bucket=self.bucket,
            greengrass=self.greengrass,
            thing_group_arn=self.setting("FEDGRASS_THING_GROUP_ARN"),
            model_component=self.setting("FEDGRASS_MODEL_COMPONENT"),
            sagemaker=self.sagemaker,
            package_group=self.setting("FEDGRASS_MODEL_PACKAGE_GROUP"),
            image=self.setting("FEDGRASS_IMAGE"),
        )

    @cached_property
    def _dynamodb(self) -> DynamoDBServiceResource:
        return self._session.resource("dynamodb", config=_CONFIG)


# Throttling is waited out here, within a function's time; Step Functions and Lambda repeat what fails beyond that.
_CONFIG = Config(retries={"mode": "standard", "max_attempts": 6}, connect_timeout=5, read_timeout=20)


@cache
def own_services() -> Services:
    """Return the services of this function's own environment, once per process."""
    return Services(known_session(), os.environ)


def connect(*names: str) -> None:
    """Make the named clients while Lambda initialises the function, so that no event waits for them; logs are JSON from then on.

    Elsewhere nothing happens: whoever imports a function's module passes services of their own.
    """
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        configure()
        # Cached properties: asking for them makes the clients.
        for name in names:
            getattr(own_services(), name)
