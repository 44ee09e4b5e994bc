"""What is needed to end a round: the fleet's table, bucket, deployments and registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgrass.protocol.tables import Table


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
    s3: Any
    bucket: str
    greengrass: Any
    thing_group_arn: str
    model_component: str
    sagemaker: Any = None
    package_group: str = ""
    image: str = ""
