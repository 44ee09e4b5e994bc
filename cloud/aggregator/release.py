"""A model bundle made available to a fleet: uploaded, made a component version, deployed.

Each step can run twice with one effect, and a version is visible only when all of it is there: the manifest is uploaded
last, the component version is made after that, and devices hear of it by the deployment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloud.aggregator.canaries import Canaries, job_configuration
from cloud.aggregator.component import Account, create_component
from cloud.aggregator.deployment import SupersededError, deploy_version
from cloud.aggregator.recipe import global_model_recipe
from cloud.aggregator.registry import Registry
from cloud.aggregator.s3 import Bucket
from fedgrass.bundle import MANIFEST, PARAMETERS, Bundle
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import GLOBAL_MODEL, check_fleet, model_prefix
from fedgrass.protocol.settings import Rollout
from fedgrass.protocol.tables import Table, set_current_model


@dataclass(frozen=True)
class FleetClients:
    """What a fleet is reached through: its bucket, its rounds table, a ``greengrassv2`` client, its thing group.

    Released models are registered where there is a ``registry``; devices are asked through ``iot_data``, an ``iot-data`` client.
    """

    fleet: str
    bucket: Bucket
    rounds: Table
    greengrass: Any
    thing_group_arn: str
    model_component: str = GLOBAL_MODEL
    registry: Registry | None = None
    iot_data: Any = None


@dataclass(frozen=True)
class Release:
    """A released version. ``deployment_id`` is None if the fleet has no deployment yet, and was not to get one."""

    base: Base
    component_arn: str
    deployment_id: str | None
    target_arn: str


def publish_model(bundle: Bundle, clients: FleetClients) -> Release:
    """Release a bundle of the operator's, and make it the base of the fleet's next round; safe to repeat.

    Raises
    ------
    SupersededError
        If the fleet has a newer version.
    FedgrassError
        As `release_model` does.
    """
    released = release_model(bundle, clients)
    if not set_current_model(clients.rounds, clients.fleet, released.base):
        raise SupersededError(
            f"fleet {clients.fleet!r}: a newer model than {released.base.version} is current; it stays"
        )
    return released


def release_model(
    bundle: Bundle,
    clients: FleetClients,
    *,
    first_deployment: bool = False,
    rollout: Rollout | None = None,
    canaries: Canaries | None = None,
) -> Release:
    """Publish a bundle as a version of the fleet's model component and deploy it to the fleet; safe to repeat.

    Parameters
    ----------
    bundle
        Sealed; every file is compared with its digest first.
    first_deployment
        Whether to make the thing group's first deployment if it has none. Without one, devices get the model with the
        deployment that brings the other components.
    rollout
        At which rate, and when to stop.
    canaries
        Who gets it first; the fleet does not get what they refuse.

    Raises
    ------
    BundleError
        If the bundle was altered.
    CanaryError
        If the canaries refuse the model.
    ReleaseError
        If the version exists with other content, or cannot be made or deployed.
    SupersededError
        If a newer version is deployed.
    """
    check_fleet(clients.fleet)
    bundle.verify()
    base = upload(bundle, clients.bucket, clients.fleet)
    prefix = model_prefix(clients.fleet, bundle.manifest.version)
    uris = {name: clients.bucket.uri(prefix + name) for name in (*bundle.manifest.files, MANIFEST)}
    recipe = global_model_recipe(clients.fleet, bundle.manifest, uris, component=clients.model_component)
    arn = create_component(clients.greengrass, Account.of(clients.thing_group_arn), recipe)
    version = bundle.manifest.version
    if canaries is not None:
        canaries.try_out(clients.greengrass, clients.thing_group_arn, clients.model_component, version)
    deployment_id = deploy_version(
        clients.greengrass,
        clients.thing_group_arn,
        clients.model_component,
        version,
        create=first_deployment,
        job=job_configuration(rollout) if rollout is not None else None,
    )
    return Release(base, arn, deployment_id, clients.thing_group_arn)


def upload(bundle: Bundle, bucket: Bucket, fleet: str) -> Base:
    """Upload a bundle under its version, the manifest last."""
    prefix = model_prefix(fleet, bundle.manifest.version)
    for name in (*sorted(bundle.manifest.files), MANIFEST):
        bucket.publish(prefix + name, bundle.path(name))
    return Base(
        version=bundle.manifest.version,
        parameters_key=prefix + PARAMETERS,
        parameters_sha256=bundle.manifest.parameters_sha256,
        graph_sha256=bundle.manifest.graph_sha256,
    )
