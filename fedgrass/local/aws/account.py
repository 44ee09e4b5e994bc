"""The one account and region that a local AWS has."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

ACCOUNT = os.environ.get("MOTO_ACCOUNT_ID", "123456789012")
"""moto's own variable: another number makes another account, beside the usual one (`fedgrass.local.aws.peers`)."""
REGION = "us-east-1"


@dataclass(frozen=True)
class Keys:
    """The account's credentials: created again at each start, so that only who was given them gets in."""

    access_key: str
    secret_key: str

    @classmethod
    def new(cls) -> Keys:
        """Make credentials that nobody can guess."""
        return cls(f"LOCAL{secrets.token_hex(16).upper()}", secrets.token_urlsafe(30))


def arn(service: str, resource: str) -> str:
    """Return the ARN of ``resource`` of ``service`` in this account and region."""
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def client_environment(endpoint_url: str, keys: Keys) -> Mapping[str, str]:
    """Return the variables with which any AWS SDK, the AWS CLI and the GDK use the local endpoint, past any proxy."""
    # Added to what the user has: a company's proxy cannot reach this machine's loopback.
    direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost,127.0.0.1"]))
    return {
        # Programs differ in which of the two spellings they read.
        "NO_PROXY": direct,
        "no_proxy": direct,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        # An SDK that lost its key would otherwise wait for an instance's metadata service, which is not there.
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(service: str, endpoint_url: str, keys: Keys) -> Any:
    """Make a boto3 client for the local endpoint.

    Parameters
    ----------
    service
        The service's name, as boto3 has it.
    endpoint_url
        Address of the endpoint.
    keys
        The account's access key.

    Returns
    -------
    BaseClient
        The client.
    """
    connect: Callable[..., Any] = boto3.client  # typed for names that are written out
    # Path style: the other one would ask the resolver for BUCKET.127.0.0.1.
    return connect(
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=Config(max_pool_connections=16, s3={"addressing_style": "path"}),
    )
