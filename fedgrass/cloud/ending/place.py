"""What is needed to end a round: the fleet's table, bucket, deployments and registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.protocol.tables import Table

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient


@dataclass(frozen=True)
class Place:
    """A fleet's part of an account.

    Attributes
    ----------
    s3, greengrass, sagemaker
        boto3 clients; ``sagemaker`` is None where models are not registered.
    """

    fleet: str
    rounds: Table
    s3: S3Client
    bucket: str
    greengrass: GreengrassV2Client
    thing_group_arn: str
    model_component: str
    sagemaker: SageMakerClient | None = None
    package_group: str = ""
    image: str = ""
