"""The job's AWS clients: made once, from one session, because making them is what takes time."""

from __future__ import annotations

from typing import Any

from botocore.config import Config

from fedgrass.buckets import owned_by
from fedgrass.cloud.aggregator.component import Account
from fedgrass.cloud.aggregator.config import JobSettings
from fedgrass.cloud.aggregator.registry import Registry
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.session import known_session

# Sixteen updates are opened at once by each of a few readers: botocore's default of ten connections would make them
# queue.
_CONFIG = Config(retries={"mode": "standard", "max_attempts": 8}, max_pool_connections=96)


def connect(place: JobSettings) -> tuple[FleetClients, Any]:
    """Return what the fleet is reached through, and the S3 client beneath it.

    Credentials and endpoint are those of the environment; the region is the thing group's.
    """
    account = Account.of(place.thing_group_arn)
    session = known_session(account.region)
    # Every request names the bucket's owner: a bucket of that name may be somebody else's after the fleet was
    # destroyed.
    s3 = owned_by(session.client("s3", config=_CONFIG), account.account)
    dynamodb = session.resource("dynamodb", config=_CONFIG)
    clients = FleetClients(
        fleet=place.fleet,
        bucket=Bucket(s3, place.bucket),
        rounds=dynamodb.Table(place.rounds_table),
        devices=dynamodb.Table(place.devices_table),
        greengrass=session.client("greengrassv2", config=_CONFIG),
        iot_data=session.client("iot-data", config=_CONFIG),
        thing_group_arn=place.thing_group_arn,
        model_component=place.model_component,
        registry=Registry(session.client("sagemaker", config=_CONFIG), place.model_package_group, place.image)
        if place.model_package_group and place.image
        else None,
    )
    return clients, s3
