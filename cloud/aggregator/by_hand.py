"""Which model a fleet has, decided by a person: a held model released after all, an earlier one brought back.

Devices judge a newer model that comes this way as any other: one on which it is clearly worse keeps what it has, and says so.
An older one they only check for soundness (`fedgrass.edge.admission`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import ValidationError

from cloud.aggregator.canaries import job_configuration
from cloud.aggregator.component import Account as ComponentAccount
from cloud.aggregator.deployment import SupersededError, deploy_version
from cloud.aggregator.download import download_bundle
from cloud.aggregator.release import FleetClients, Release, release_model
from cloud.aggregator.s3 import Bucket
from fedgrass import tensors
from fedgrass.account import Account
from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle, parse_manifest
from fedgrass.errors import RecordError, ReleaseError
from fedgrass.files import write_atomically
from fedgrass.inference import write_bundle
from fedgrass.operations import require_no_open_round
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import model_prefix, parameters_key, report_key, report_prefix, version_order
from fedgrass.protocol.records import FleetState, RoundRecord
from fedgrass.protocol.report import MAX_REPORT_BYTES, RoundReport
from fedgrass.protocol.tables import load_round, mark_released, return_to_model, set_current_model


def fleet_clients(account: Account) -> FleetClients:
    """Return what the fleet's models are published with."""
    return FleetClients(
        fleet=account.fleet,
        bucket=Bucket(account.s3, account.stack.bucket),
        rounds=account.rounds_table,
        greengrass=account.session.client("greengrassv2"),
        thing_group_arn=account.stack.thing_group_arn,
        model_component=account.stack.model_component,
    )


def read_report(bucket: Bucket, record: RoundRecord) -> RoundReport | None:
    """Return the aggregator's report of a round, None if it left none; raises `ReleaseError` if it cannot be read."""
    key = report_key(record.fleet, record.round)
    content = bucket.read(key, max_bytes=MAX_REPORT_BYTES)
    if content is None:
        return None
    try:
        return RoundReport.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(
            f"{bucket.uri(key)}: is no round report this version reads ({error.errors()[0]['msg']})"
        ) from error


def release_held(account: Account, version: str) -> Release:
    """Release the model that a round made and held, to the whole fleet, at the rate of that round's settings.

    The round's report stays as it was written; its record says that the model was released by hand. Running it again
    changes nothing.

    Raises
    ------
    RoundRefusedError
        If a round is open.
    SupersededError
        If the fleet has a newer model.
    ReleaseError
        If the version was not held, left no parameters, or they are not those of the report.
    """
    clients = fleet_clients(account)
    state = require_no_open_round(account)
    record = _round_of(clients, version)
    if record is None or record.outcome not in {"held", "released"}:
        raise ReleaseError(f"model {version}: no round of fleet {account.fleet!r} holds it; see `fedgrass round list`")
    if state.model is not None and version_order(state.model.version) > version_order(version):
        raise SupersededError(
            f"fleet {account.fleet!r} is at {state.model.version} already, which is newer than {version}. "
            "Roll back to an earlier version first, or leave it"
        )
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
        bundle = _held_bundle(clients, record, Path(folder))
        released = release_model(bundle, clients, rollout=record.settings.rollout)
    if not set_current_model(clients.rounds, clients.fleet, released.base):
        raise SupersededError(f"fleet {account.fleet!r}: a newer model than {version} became current; it stays")
    mark_released(clients.rounds, record, f"released by hand; it was held: {record.reason}")
    return released


def roll_back(account: Account, version: str) -> Release:
    """Bring a version back that the fleet had: to its devices, and as the base of its next round.

    It works in either direction, so that a roll-back can be undone. Running it again changes nothing.

    Raises
    ------
    RoundRefusedError
        If a round is open.
    ReleaseError
        If the fleet never had the version, or its state changes meanwhile.
    """
    clients = fleet_clients(account)
    state = require_no_open_round(account)
    record = _round_of(clients, version)
    if record is not None and record.outcome != "released":
        raise ReleaseError(
            f"model {version}: round {record.round} made it, but did not release it ({record.outcome}: {record.reason})"
        )
    base = published_base(clients, version)
    if base is None:
        raise ReleaseError(f"model {version}: fleet {account.fleet!r} never had it; see its versions in the console")
    _make_current(clients, state, base)
    deployment_id = deploy_version(
        clients.greengrass,
        clients.thing_group_arn,
        clients.model_component,
        version,
        create=False,
        exact=True,
        job=job_configuration(record.settings.rollout) if record is not None else None,
    )
    arn = ComponentAccount.of(clients.thing_group_arn).component_arn(clients.model_component, version)
    return Release(base, arn, deployment_id, clients.thing_group_arn)


def published_base(clients: FleetClients, version: str) -> Base | None:
    """Return a version that lies complete in the bucket, as a round starts from it; None if there is none."""
    prefix = model_prefix(clients.fleet, version)
    content = clients.bucket.read(prefix + MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    if content is None:
        return None
    manifest = parse_manifest(content, name=clients.bucket.uri(prefix + MANIFEST))
    return Base(
        version=version,
        parameters_key=parameters_key(clients.fleet, version),
        parameters_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
    )


def _make_current(clients: FleetClients, state: FleetState, base: Base) -> None:
    # Before the deployment: a round that opened in between would train on the model that is being withdrawn.
    if state.model == base:
        return
    if not return_to_model(clients.rounds, clients.fleet, state, base):
        raise ReleaseError(f"fleet {clients.fleet!r}: a round opened or a model was published meanwhile; look again")


def _round_of(clients: FleetClients, version: str) -> RoundRecord | None:
    """Return the record of the round that made a version; None for one of the operator's."""
    _, number, _ = version_order(version)
    if number == 0:
        return None
    try:
        record = load_round(clients.rounds, clients.fleet, number)
    except RecordError:
        return None
    return record if record.version == version else None


def _held_bundle(clients: FleetClients, record: RoundRecord, folder: Path) -> Bundle:
    """Make the bundle again that the round's job made: its base with the parameters that the job kept."""
    report = read_report(clients.bucket, record)
    key = report_prefix(record.fleet, record.round) + PARAMETERS
    base = download_bundle(clients.bucket, record.base, folder / "base")
    most = 2 * base.path(PARAMETERS).stat().st_size + (1 << 20)
    content = clients.bucket.read(key, max_bytes=most)
    if report is None or report.model is None or content is None:
        raise ReleaseError(
            f"model {record.version}: round {record.round} left no parameters to release ({record.reason or record.outcome})"
        )
    write_atomically(folder / PARAMETERS, content)
    parameters, _ = tensors.load(folder / PARAMETERS)
    application = record.settings.inference
    made = write_bundle(
        base,
        parameters,
        folder / "new",
        version=record.version,
        int8=application.int8,
        sparsity=application.sparsity,
    )
    if made.manifest.parameters_sha256 != report.model.parameters_sha256:
        raise ReleaseError(
            f"{clients.bucket.uri(key)}: is not the model that the report of round {record.round} describes"
        )
    return made
