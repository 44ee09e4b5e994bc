"""A fleet of another account, as a job of this one gets at it: by a role of the fleet's, S3, and IoT Core's HTTPS endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from botocore.exceptions import ClientError

from fedgrass.buckets import owned_by
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import round_topic

if TYPE_CHECKING:
    from mypy_boto3_iot_data import IoTDataPlaneClient
    from mypy_boto3_s3 import S3Client

MISSING = frozenset({"404", "403", "NoSuchKey", "AccessDenied", "ResourceNotFoundException"})
"""Codes of what is not there, or looks so to a role that may not list."""


@dataclass
class FleetAccess:
    """Clients of the fleet's account, and the time."""

    s3: S3Client
    iot_data: IoTDataPlaneClient
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def assume(cls, role_arn: str, *, tag: Literal["silo", "helper"], name: str, region: str) -> FleetAccess:
        """Assume the fleet's role for silos, or for helpers, for an hour at a time.

        The session carries the name as a tag, by which the role's policy tells those who may assume it apart.

        Parameters
        ----------
        role_arn
            The fleet's role.
        tag
            What it is for.
        name
            Of the silo or helper.
        region
            The fleet's region.

        Returns
        -------
        FleetAccess
            Clients whose credentials renew themselves.
        """
        import boto3
        from botocore.credentials import RefreshableCredentials
        from botocore.session import get_session

        sts = boto3.client("sts", region_name=region)

        def credentials() -> dict[str, str]:
            # A role that is assumed from a role lasts an hour at most (role chaining): renewed, not prolonged.
            found = sts.assume_role(RoleArn=role_arn, RoleSessionName=name, Tags=[{"Key": tag, "Value": name}])
            given = found["Credentials"]
            return {
                "access_key": given["AccessKeyId"],
                "secret_key": given["SecretAccessKey"],
                "token": given["SessionToken"],
                "expiry_time": given["Expiration"].isoformat(),
            }

        session = get_session()
        # botocore has no public way to give a session credentials that renew themselves.
        vars(session)["_credentials"] = RefreshableCredentials.create_from_metadata(
            metadata=credentials(), refresh_using=credentials, method="sts-assume-role"
        )
        assumed = boto3.Session(botocore_session=session, region_name=region)
        # From the role's ARN: the bucket must be the fleet's account's, not this one's.
        account = role_arn.split(":")[4]
        return cls(owned_by(assumed.client("s3"), account), assumed.client("iot-data"))

    def announcement(self, fleet: str) -> Announcement | None:
        """Return what the fleet announces now; None if nothing."""
        try:
            # Polled by HTTPS: an MQTT connection would need a certificate, and a job has none.
            message = self.iot_data.get_retained_message(topic=round_topic(fleet))
        except ClientError as error:
            if error.response["Error"]["Code"] not in MISSING:
                raise
            return None
        payload = message.get("payload") or b""
        return Announcement.decode(payload) if payload else None
