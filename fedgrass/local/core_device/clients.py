"""The device's boto3 clients, all to one endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, DeferredRefreshableCredentials
from botocore.exceptions import ClientError, HTTPClientError

from fedgrass.local.core_device.credentials import RoleCredentials

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_s3 import S3Client

_TRANSIENT_CODES = {"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestTimeout", "SlowDown"}


@dataclass(frozen=True)
class Clients:
    """What the device asks of AWS."""

    greengrass: GreengrassV2Client
    s3: S3Client
    credentials: RoleCredentials


def connect(endpoint_url: str, *, region: str, role_arn: str, thing: str) -> Clients:
    """Make a device's clients; nothing is sent yet.

    The device's certificate is stood in for by the account's keys, from the environment or wherever else boto3 finds
    them; the role's credentials are used for S3, as on the real device.

    Parameters
    ----------
    endpoint_url
        Address of the local AWS.
    region
        Region of the fleet.
    role_arn
        The token-exchange role.
    thing
        The device's thing name.

    Returns
    -------
    Clients
        For Greengrass and S3, with the role's credentials.
    """
    config = Config(
        # Few: whoever calls has its own way to wait, and holds a thread meanwhile.
        retries={"total_max_attempts": 2, "mode": "standard"},
        connect_timeout=5,
        read_timeout=30,
        s3={"addressing_style": "path"},
    )
    certificate = boto3.Session(region_name=region)
    sts = certificate.client("sts", endpoint_url=endpoint_url, config=config)
    credentials = RoleCredentials(sts, role_arn=role_arn, thing=thing)
    session = boto3.Session(botocore_session=role_session(credentials), region_name=region)
    return Clients(
        greengrass=certificate.client("greengrassv2", endpoint_url=endpoint_url, config=config),
        s3=session.client("s3", endpoint_url=endpoint_url, config=config),
        credentials=credentials,
    )


def role_session(credentials: RoleCredentials) -> botocore.session.Session:
    """Return a botocore session that assumes the role at the first request, and again before it expires."""
    session = botocore.session.Session()
    # This provider alone: the usual chain would find the account's keys, which stand for the device's certificate,
    # and S3 would be used with them.
    session.register_component("credential_provider", CredentialResolver([_RoleProvider(credentials)]))
    return session


class _RoleProvider(CredentialProvider):
    METHOD = "token-exchange"

    def __init__(self, credentials: RoleCredentials) -> None:
        super().__init__()
        self._role = credentials

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(lambda: self._role.get().metadata(), self.METHOD)


def is_transient(error: Exception) -> bool:
    """Tell whether trying again may help: no connection, throttled, or a fault of the service."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error.response.get("Error", {}).get("Code") in _TRANSIENT_CODES
    return isinstance(error, HTTPClientError)
