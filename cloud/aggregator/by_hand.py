"""Which model a fleet has, decided by a person: one released that its round did not release, an earlier one brought back.

Devices judge a newer model that comes this way as any other: one on which it is clearly worse keeps what it has, and says so.
An older one they only check for soundness (`fedgrass.edge.admission`).
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from cloud.aggregator.canaries import job_configuration
from cloud.aggregator.deployment import SupersededError, deploy_version
from cloud.aggregator.download import download_bundle
from cloud.aggregator.registry import Registry
from cloud.aggregator.release import FleetClients, Release, base_of, make_component, release_of_round
from cloud.aggregator.s3 import Bucket
from cloud.aggregator.server_state import release_held_state
from fedgrass import tensors
from fedgrass.account import Account
from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle, Manifest, parse_manifest
from fedgrass.errors import RecordError, ReleaseError
from fedgrass.files import write_atomically
from fedgrass.inference import write_bundle
from fedgrass.operations import require_no_open_round
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import model_prefix, report_key, report_prefix, version_order
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


def release(account: Account, version: str, *, canaries: bool = True) -> Release:
    """Release the model of a round that held it or only went on from it, in the way of a round: see `release_of_round`.

    The round's report stays as it was written; its record says that the model was released by hand. Running it again
    changes nothing.

    Parameters
    ----------
    canaries
        Whether the round's canaries get it first and are waited for. They are not asked twice: of a model that they had,
        this is the decision.

    Raises
    ------
    RoundRefusedError
        If a round is open.
    SupersededError
        If the fleet has a newer model.
    CanaryError
        If the canaries refuse it.
    ReleaseError
        If no round made the version, it left no parameters, or they are not those of the report.
    """
    clients = replace(fleet_clients(account), registry=_registry(account))
    state = require_no_open_round(account)
    record = _round_of(clients, version)
    if record is None or record.outcome not in {"held", "advanced", "released"}:
        raise ReleaseError(
            f"model {version}: no round of fleet {account.fleet!r} made it to be released; see `fedgrass round list`"
        )
    if state.model is not None and version_order(state.model.version) > version_order(version):
        raise SupersededError(
            f"fleet {account.fleet!r} is at {state.model.version} already, which is newer than {version}. "
            "Roll back to an earlier version first, or leave it"
        )
    report = read_report(clients.bucket, record)
    if report is None or report.model is None:
        raise _nothing_left(record)
    tried = record.active + record.refused + record.rolled_back > 0
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
        bundle = _bundle_of(clients, record, report, Path(folder))
        if record.outcome == "held" and report.server_state_sha256 is not None:
            release_held_state(clients.bucket, record, report.server_state_sha256, Path(folder))
        released = release_of_round(
            bundle,
            clients,
            record,
            participants=len(report.updates),
            evaluation=report.evaluation,
            canaries=canaries and not tried,
        )
    if not set_current_model(clients.rounds, clients.fleet, released.base):
        raise SupersededError(f"fleet {account.fleet!r}: a newer model than {version} became current; it stays")
    mark_released(clients.rounds, record)
    return released


def roll_back(account: Account, version: str) -> Release:
    """Bring a version back that the fleet had: to its devices, and as the base of its next round.

    The fleet had what was released, and what a later round started from. It works in either direction, so that a roll-back
    can be undone. Running it again changes nothing.

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
    if record is not None and not record.adopted:
        raise ReleaseError(
            f"model {version}: round {record.round} made it, but did not release it ({record.outcome}: {record.reason})"
        )
    manifest = _published(clients, version)
    if manifest is None:
        raise ReleaseError(f"model {version}: fleet {account.fleet!r} never had it; see its versions in the console")
    base = base_of(manifest, clients.fleet)
    _make_current(clients, state, base)
    arn = make_component(manifest, clients)
    deployment_id = deploy_version(
        clients.greengrass,
        clients.thing_group_arn,
        clients.model_component,
        version,
        create=False,
        exact=True,
        job=job_configuration(record.settings.rollout) if record is not None else None,
    )
    return Release(base, arn, deployment_id, clients.thing_group_arn)


def _registry(account: Account) -> Registry:
    return Registry(account.session.client("sagemaker"), account.stack.model_package_group, account.stack.image)


def _published(clients: FleetClients, version: str) -> Manifest | None:
    """Return the manifest of a version that lies complete in the bucket; None if there is none."""
    key = model_prefix(clients.fleet, version) + MANIFEST
    content = clients.bucket.read(key, max_bytes=MAX_MANIFEST_BYTES)
    return None if content is None else parse_manifest(content, name=clients.bucket.uri(key))


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


def _bundle_of(clients: FleetClients, record: RoundRecord, report: RoundReport, folder: Path) -> Bundle:
    """Return the bundle that the round's job made: published if others needed it, else made again from what was kept."""
    manifest = _published(clients, record.version)
    if manifest is not None:
        made = download_bundle(clients.bucket, base_of(manifest, clients.fleet), folder / "new")
    else:
        made = _made_again(clients, record, folder)
    if report.model is None or made.manifest.parameters_sha256 != report.model.parameters_sha256:
        raise ReleaseError(f"model {record.version}: is not the one that the report of round {record.round} describes")
    return made


def _made_again(clients: FleetClients, record: RoundRecord, folder: Path) -> Bundle:
    base = download_bundle(clients.bucket, record.base, folder / "base")
    most = 2 * base.path(PARAMETERS).stat().st_size + (1 << 20)
    content = clients.bucket.read(report_prefix(record.fleet, record.round) + PARAMETERS, max_bytes=most)
    if content is None:
        raise _nothing_left(record)
    write_atomically(folder / PARAMETERS, content)
    parameters, _ = tensors.load(folder / PARAMETERS)
    application = record.settings.inference
    return write_bundle(
        base, parameters, folder / "new", version=record.version, int8=application.int8, sparsity=application.sparsity
    )


def _nothing_left(record: RoundRecord) -> ReleaseError:
    why = record.reason or record.outcome
    return ReleaseError(f"model {record.version}: round {record.round} left no parameters to release ({why})")
