"""A model bundle made available to a fleet: uploaded, made a component version, deployed.

Each step can run twice with one effect, and a version is visible only when all of it is there: the manifest is uploaded
last, the component version is made after that, and devices hear of it by the deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from cloud.aggregator.canaries import Canaries, Heard, job_configuration
from cloud.aggregator.component import Account, create_component
from cloud.aggregator.deployment import SupersededError, deploy_version
from cloud.aggregator.recipe import global_model_recipe
from cloud.aggregator.registry import Registry
from cloud.aggregator.s3 import Bucket
from fedgrass.bundle import MANIFEST, Bundle, Manifest
from fedgrass.errors import TransferError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import GLOBAL_MODEL, check_fleet, model_prefix, parameters_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.settings import Rollout
from fedgrass.protocol.tables import Table, participations_at, set_current_model


@dataclass(frozen=True)
class FleetClients:
    """What a fleet is reached through: its bucket, its rounds table, a ``greengrassv2`` client, its thing group.

    Released models are registered where there is a ``registry``; devices are asked through ``iot_data``, an ``iot-data`` client.
    The table of ``devices`` says whose updates count; a job that has none counts everyone's.
    """

    fleet: str
    bucket: Bucket
    rounds: Table
    greengrass: Any
    thing_group_arn: str
    model_component: str = GLOBAL_MODEL
    registry: Registry | None = None
    iot_data: Any = None
    devices: Table | None = None


@dataclass(frozen=True)
class Release:
    """A released version. ``deployment_id`` is None if the fleet has no deployment yet, and was not to get one."""

    base: Base
    component_arn: str
    deployment_id: str | None
    target_arn: str
    model_package_arn: str | None = None


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


def release_of_round(
    bundle: Bundle,
    clients: FleetClients,
    record: RoundRecord,
    *,
    participants: int,
    evaluation: Evaluation | None,
    canaries: bool = True,
) -> Release:
    """Release the model that a round made, as its settings say, and register it where there is a registry; safe to repeat.

    Parameters
    ----------
    participants, evaluation
        Of the round, for the registry.
    canaries
        Whether the round's canaries get it first, if it has any.

    Raises
    ------
    FedgrassError
        As `release_model` does.
    """
    rollout = record.settings.rollout

    def heard(things: Sequence[str], since_ms: int) -> Heard:
        """What the canaries said of the model, each in its own record of the round."""
        parts = participations_at(clients.rounds, record.fleet, [(record.round, thing) for thing in things])
        said = [part.model_outcome for part in parts if (part.model_received_at or 0) >= since_ms]
        return Heard(active=said.count("active"), refused=said.count("refused") + said.count("rolled_back"))

    released = release_model(
        bundle,
        clients,
        first_deployment=True,
        rollout=rollout,
        canaries=Canaries(rollout, heard) if canaries and rollout.canary_group else None,
    )
    if clients.registry is None:
        return released
    try:
        package = clients.registry.register(
            bundle, clients.bucket, record, participants=participants, evaluation=evaluation
        )
    except (ClientError, BotoCoreError, TransferError) as error:
        # A service for people, so its failure is none of the release.
        log = Log(__name__, fleet=record.fleet, round=record.round)
        log.error("not_registered", version=bundle.manifest.version, reason=str(error))
        return released
    return replace(released, model_package_arn=package)


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
    arn = make_component(bundle.manifest, clients)
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
    return base_of(bundle.manifest, fleet)


def make_component(manifest: Manifest, clients: FleetClients) -> str:
    """Make an uploaded bundle a version of the fleet's model component, unless it is one; returns the version's ARN."""
    prefix = model_prefix(clients.fleet, manifest.version)
    uris = {name: clients.bucket.uri(prefix + name) for name in (*manifest.files, MANIFEST)}
    recipe = global_model_recipe(clients.fleet, manifest, uris, component=clients.model_component)
    return create_component(clients.greengrass, Account.of(clients.thing_group_arn), recipe)


def base_of(manifest: Manifest, fleet: str) -> Base:
    """Return an uploaded model as a round starts from it."""
    return Base(
        version=manifest.version,
        parameters_key=parameters_key(fleet, manifest.version),
        parameters_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
    )
