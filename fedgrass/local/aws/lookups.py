"""What moto and boto3 look up in their data at each start, answered without reading all of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from botocore.loaders import Loader
from botocore.session import Session

from fedgrass.local.aws.account import REGION
from fedgrass.local.aws.overrides import override


def shorten() -> None:
    """Have one region, one look at which services there are, and no types of EC2's instances.

    To be called before moto's services are imported, which ask at once. For a service's regions botocore reads the whole
    description of it, EC2's included, and each of its loaders goes through all folders of services: 1.1 s of processor time. moto
    reads all regions' types of instances, which only EC2 serves: a quarter of a second, and 58 MB.
    """
    override(Session, "get_available_regions", _regions)
    services = lru_cache(Loader().list_available_services)

    def available(_loader: Loader, type_name: str) -> list[str]:
        return services(type_name)

    override(Loader, "list_available_services", available)
    # Late: it imports moto's core, which asks for regions.
    from moto.utilities import utils

    read = utils.load_resource

    def load(resource: str) -> Any:
        if resource == "ec2/resources/instance_types.json":
            return {}
        return [] if resource.startswith("ec2/resources/instance_type_offerings/") else read(resource)

    override(utils, "load_resource", load)


def _regions(
    _session: Session,
    service_name: str,  # noqa: ARG001 - botocore's names, for they are given by name
    partition_name: str = "aws",
    allow_non_regional: bool = False,  # noqa: ARG001
) -> list[str]:
    return [REGION] if partition_name == "aws" else []
