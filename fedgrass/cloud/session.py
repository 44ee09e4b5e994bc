"""boto3's session of a function and of a job, which starts in less processor time."""

from __future__ import annotations

import boto3
import botocore.session
from botocore.loaders import Loader

SERVICES = (
    *("dynamodb", "greengrassv2", "iot", "iot-data", "s3", "sagemaker", "stepfunctions"),
    *("sts", "sso", "sso-oidc"),  # of botocore's own, for credentials
)
"""What functions and jobs make clients of; botocore refuses another as unknown."""


class _Known(Loader):
    """Knows which services there are: botocore's own goes through the folders of all 400, once for each type of file."""

    def list_available_services(self, type_name: str) -> list[str]:  # noqa: ARG002 - each has the types that are asked for
        return list(SERVICES)


def known_session(region_name: str | None = None) -> boto3.Session:
    """Return a session for clients of `SERVICES`, otherwise as boto3's own.

    Parameters
    ----------
    region_name
        The region; the environment's if not given.
    """
    core = botocore.session.Session()
    core.register_component("data_loader", _Known())
    return boto3.Session(botocore_session=core, region_name=region_name)
