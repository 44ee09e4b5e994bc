"""The one account and region that the local AWS has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config

ACCOUNT = "123456789012"
REGION = "us-east-1"
_PLACEHOLDER = "local"  # credentials: nothing here checks a signature


def arn(service: str, resource: str) -> str:
    """Return the ARN of ``resource`` of ``service`` in this account and region."""
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def client_environment(endpoint_url: str) -> Mapping[str, str]:
    """Return the variables with which any AWS SDK, the AWS CLI and the GDK use the local endpoint, past any proxy."""
    direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost,127.0.0.1"]))
    return {
        "NO_PROXY": direct,
        "no_proxy": direct,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": _PLACEHOLDER,
        "AWS_SECRET_ACCESS_KEY": _PLACEHOLDER,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(service: str, endpoint_url: str) -> Any:
    """Return a boto3 client of ``service`` at the local endpoint."""
    return boto3.client(
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=_PLACEHOLDER,
        aws_secret_access_key=_PLACEHOLDER,
        config=Config(max_pool_connections=16, s3={"addressing_style": "path"}),
    )
