"""The one account and region that the local AWS has."""

from __future__ import annotations

from collections.abc import Mapping

ACCOUNT = "123456789012"
REGION = "us-east-1"


def arn(service: str, resource: str) -> str:
    """Return the ARN of ``resource`` of ``service`` in this account and region."""
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def client_environment(endpoint_url: str) -> Mapping[str, str]:
    """Return the variables with which any AWS SDK, the AWS CLI and the GDK use the local endpoint.

    The credentials are placeholders: nothing here checks a signature.
    """
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
