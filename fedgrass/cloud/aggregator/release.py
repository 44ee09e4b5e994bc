"""A model bundle made available to a fleet: uploaded, made a component version, and only then deployed.

Each step can run twice with one effect, and a version is visible only when all of it is there: the manifest is uploaded
last, the component version is made after that, the fleet's state names it then, and devices hear of it by the deployment, which
follows the state (`fedgrass.cloud.ending.finish.deploy_current`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.architecture import engine_of
from fedgrass.builder_archive import builder_sha256
from fedgrass.bundle import MANIFEST, Bundle, Manifest
from fedgrass.cloud.aggregator.canaries import Canaries, Heard
from fedgrass.cloud.aggregator.component import Account, create_component
from fedgrass.cloud.aggregator.recipe import global_model_recipe
from fedgrass.cloud.aggregator.registry import Registry, store_archive
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.ending.deployment import SupersededError, configure, deploy_version, deployed_version
from fedgrass.cloud.ending.finish import deploy_current
from fedgrass.cloud.ending.place import Place
from fedgrass.errors import ConfigurationError, TransferError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import GLOBAL_MODEL, RUNTIME, SCORE, check_fleet, model_prefix, version_order
from fedgrass.protocol.participations import participations_at
from fedgrass.protocol.records import CanaryTrial, RoundRecord, round_key
from fedgrass.protocol.release_settings import Rollout
from fedgrass.protocol.tables import Table, load_round, load_settings, set_current_model
from fedgrass.protocol.writes import change, update_item

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_iot_data import IoTDataPlaneClient


@dataclass(frozen=True)
class FleetClients:
    """What a fleet is reached through: its bucket, its rounds table, a ``greengrassv2`` client, its thing group.

    Released models are registered where there is a ``registry``; devices are asked through ``iot_data``, an ``iot-data`` client.
    The table of ``devices`` says whose updates count; a job that has none counts everyone's.
    """

    fleet: str
    bucket: Bucket
    rounds: Table
    greengrass: GreengrassV2Client
    thing_group_arn: str
    model_component: str = GLOBAL_MODEL
    registry: Registry | None = None
    iot_data: IoTDataPlaneClient | None = None
    devices: Table | None = None

    @property
    def place(self) -> Place:
        """What is needed to end a round."""
        return Place(
            fleet=self.fleet,
            rounds=self.rounds,
            s3=self.bucket.client,
            bucket=self.bucket.name,
            greengrass=self.greengrass,
            thing_group_arn=self.thing_group_arn,
            model_component=self.model_component,
            sagemaker=self.registry.sagemaker if self.registry else None,
            package_group=self.registry.group if self.registry else "",
            image=self.registry.image if self.registry else "",
        )


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
    version = bundle.manifest.version
    # Of now, not of a round: a person publishes outside any round.
    rollout = load_settings(clients.rounds, clients.fleet).rollout
    # The check for a newer version comes after the upload: files and a component version that nothing names change
    # nothing.
    base, arn = prepare(bundle, clients, rollout)
    refuse_superseded(clients, version)
    # The fleet's state first: the deployment follows it, here or wherever it was left undone.
    if not set_current_model(clients.rounds, clients.fleet, base, publish=True):
        raise SupersededError(f"fleet {clients.fleet!r}: a newer model than {version} is current; it stays")
    return Release(base, arn, deploy_current(clients.place), clients.thing_group_arn)


def trust_builder(bundle: Bundle, clients: FleetClients, builder: str) -> tuple[dict[str, Any], str | None]:
    """Have the fleet's devices run the code that a bundle brings: its digest goes into their settings; safe to repeat.

    Parameters
    ----------
    bundle
        The bundle, with code (`fedgrass.builder_archive.add_builder`).
    clients
        The fleet's services.
    builder
        ``module:object`` in that code.

    Returns
    -------
    tuple
        The settings of com.fedgrass.Runtime, and the deployment that has them; None if the fleet has none yet.

    Raises
    ------
    ConfigurationError
        If the bundle brings no code.
    ReleaseError
        If the fleet's deployment does not name com.fedgrass.Runtime.
    """
    digest = builder_sha256(bundle)
    if not digest:
        raise ConfigurationError(
            f"{bundle.folder}: brings no code for {builder!r} to be in; put it there with `fedgrass model pack`"
        )
    settings = {"engine": engine_of(bundle), "builders": {digest: builder}}
    return settings, configure(clients.greengrass, clients.thing_group_arn, RUNTIME, settings)


def prepare(bundle: Bundle, clients: FleetClients, rollout: Rollout | None = None) -> tuple[Base, str]:
    """Publish a bundle as a version of the fleet's model component, which no device gets by that; safe to repeat.

    Parameters
    ----------
    bundle
        The bundle; its digests are checked first.
    clients
        The fleet's storage and services.
    rollout
        What a refusal is on a device; the defaults if not given.

    Returns
    -------
    tuple
        The model as a round starts from it, and the component version's ARN.

    Raises
    ------
    BundleError
        If the bundle was altered.
    ReleaseError
        If the version exists with other content, or cannot be made.
    """
    check_fleet(clients.fleet)
    bundle.verify()
    return upload(bundle, clients.bucket, clients.fleet), make_component(bundle.manifest, clients, rollout)


def refuse_superseded(clients: FleetClients, version: str) -> None:
    """Raise `SupersededError` if the fleet has a newer version deployed."""
    found = deployed_version(clients.greengrass, clients.thing_group_arn, clients.model_component)
    if found is not None and version_order(found) > version_order(version):
        raise SupersededError(
            f"{clients.model_component} {found} is deployed already; {version} was not put in its place"
        )


def prepare_round(
    bundle: Bundle, clients: FleetClients, record: RoundRecord, *, canaries: bool = True
) -> tuple[Base, str]:
    """Do all of a round's release that comes before its outcome: its component, its archive, its canaries; safe to repeat.

    Parameters
    ----------
    canaries
        Whether the round's canaries get it first, if it has any.

    Raises
    ------
    SupersededError
        If the fleet has a newer version.
    CanaryError
        If the canaries refuse the model, or the round ends meanwhile.
    FedgrassError
        As `prepare` does.
    """
    rollout = record.settings.rollout
    base, arn = prepare(bundle, clients, rollout)
    refuse_superseded(clients, record.version)
    # After the component and before the outcome: whoever finishes the round registers what lies there already.
    if clients.registry is not None:
        try:
            store_archive(bundle, clients.bucket, clients.fleet)
        except (ClientError, BotoCoreError, TransferError) as error:
            # The registry is for people, so its failure is none of the release.
            log = Log(__name__, fleet=record.fleet, round=record.round)
            log.log_event("model_not_registered", version=record.version, reason=str(error))
    if canaries and rollout.canary_group:
        _canaries(clients, record).try_out(
            clients.greengrass, clients.thing_group_arn, clients.model_component, record.version
        )
    return base, arn


def _canaries(clients: FleetClients, record: RoundRecord) -> Canaries:
    table = clients.rounds

    def heard(things: Sequence[str], since_ms: int) -> Heard:
        """What the canaries said of the model, each in its own record of the round."""
        now = load_round(table, record.fleet, record.round)
        # Another outcome than that which was read at the start: somebody else has ended the round while the canaries
        # were asked.
        ended = now.outcome if now.outcome != record.outcome else None
        parts = participations_at(table, record.fleet, [(record.round, thing) for thing in things])
        # A word from before the try-out is about an earlier try of the same version.
        said = [part.model_outcome for part in parts if (part.model_received_at or 0) >= since_ms]
        refused = said.count("refused") + said.count("rolled_back")
        return Heard(active=said.count("active"), refused=refused, ended=ended or "")

    def begin(trial: CanaryTrial) -> bool:
        if record.outcome is not None:
            return True  # a person releases what the round held
        # Noted before they get the model, on condition that the round still runs: whoever closes it then knows whom to
        # take it from.
        noted = change(
            put={"canaries": trial.model_dump()},
            condition="attribute_not_exists(#outcome) AND #phase = :aggregating",
            values={":aggregating": "aggregating"},
        )
        try:
            update_item(table, Key={"fleet": record.fleet, "key": round_key(record.round)}, **noted)
        # The round ended first. Its canaries must not get a model that nobody would take back.
        except table.meta.client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    return Canaries(record.settings.rollout, heard, begin=begin)


def release_model(bundle: Bundle, clients: FleetClients, *, first_deployment: bool = False) -> Release:
    """Publish a bundle as a version of the fleet's model component and deploy it to the fleet; safe to repeat.

    The fleet's state, and so its rounds, know nothing of it: for that see `publish_model`.

    Parameters
    ----------
    bundle
        Sealed; every file is compared with its digest first.
    first_deployment
        Whether to make the thing group's first deployment if it has none. Without one, devices get the model with the
        deployment that brings the other components.

    Raises
    ------
    BundleError
        If the bundle was altered.
    ReleaseError
        If the version exists with other content, or cannot be made or deployed.
    SupersededError
        If a newer version is deployed.
    """
    base, arn = prepare(bundle, clients)
    deployment_id = deploy_version(
        clients.greengrass,
        clients.thing_group_arn,
        clients.model_component,
        bundle.manifest.version,
        create=first_deployment,
    )
    return Release(base, arn, deployment_id, clients.thing_group_arn)


def upload(bundle: Bundle, bucket: Bucket, fleet: str) -> Base:
    """Upload a bundle under its version, the manifest last, so that a model with a manifest is complete.

    Parameters
    ----------
    bundle
        The bundle.
    bucket
        The fleet's bucket.
    fleet
        The fleet's name.

    Returns
    -------
    Base
        The model as a round starts from it.

    Raises
    ------
    ReleaseError
        If the version exists with other content.
    """
    prefix = model_prefix(fleet, bundle.manifest.version)
    score = bundle.folder / SCORE
    if bundle.manifest.anomaly_quantile is not None and score.is_file():
        # The first one stays: a job that is run again may have heard other devices.
        bucket.write_first(prefix + SCORE, score.read_bytes())
    # The manifest last: readers take a model with a manifest for complete.
    for name in (*sorted(bundle.manifest.files), MANIFEST):
        bucket.publish(prefix + name, bundle.path(name))
    return Base.of(bundle.manifest, fleet)


def _has_score(bucket: Bucket, prefix: str) -> bool:
    # Read, which takes a role's missing right to list all keys into account; it is a hundred bytes.
    return bucket.read(prefix + SCORE, max_bytes=1 << 16) is not None


def make_component(manifest: Manifest, clients: FleetClients, rollout: Rollout | None = None) -> str:
    """Make an uploaded bundle a version of the fleet's model component, unless it is one.

    Parameters
    ----------
    manifest
        Of the bundle.
    clients
        The fleet's storage and services.
    rollout
        What a refusal is on a device, written into the version's recipe for good; the defaults if not given.

    Returns
    -------
    str
        ARN of the component version.

    Raises
    ------
    ReleaseError
        If the version exists with other artifacts, or is not ready in time.
    """
    refusal = (rollout or Rollout()).refusal
    prefix = model_prefix(clients.fleet, manifest.version)
    names = [*manifest.files, MANIFEST]
    # The fleet's threshold, where an evaluation found one before the version was made.
    if manifest.anomaly_quantile is not None and _has_score(clients.bucket, prefix):
        names.append(SCORE)
    uris = {name: clients.bucket.uri(prefix + name) for name in names}
    recipe = global_model_recipe(clients.fleet, manifest, uris, component=clients.model_component, refusal=refusal)
    return create_component(clients.greengrass, Account.of(clients.thing_group_arn), recipe)
