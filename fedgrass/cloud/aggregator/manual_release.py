"""Decisions by a person about the fleet's model: release one that its round did not, or roll back to an earlier one.

Devices judge a newer model that comes this way as any other: one on which it is clearly worse keeps what it has, and says so.
An older one they only check for soundness (`fedgrass.edge.admission`).
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from fedgrass import tensors
from fedgrass.account import Account
from fedgrass.bundle import MANIFEST, MAX_MANIFEST_BYTES, PARAMETERS, Bundle, Manifest, parse_manifest
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.aggregator.registry import Registry
from fedgrass.cloud.aggregator.release import FleetClients, Release, make_component, prepare_round
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.aggregator.server_state import release_held_state
from fedgrass.cloud.ending.deployment import SupersededError, job_configuration
from fedgrass.cloud.ending.finish import deploy_current, finish_by_hand, register_released
from fedgrass.cloud.ending.outcome import release_by_hand, state_of
from fedgrass.cloud.ending.reports import find_report
from fedgrass.errors import AggregationError, RecordError, ReleaseError, RoundRefusedError, TensorFileError
from fedgrass.files import write_atomically
from fedgrass.inference import write_bundle
from fedgrass.protocol.fleet_score import fleet_score
from fedgrass.protocol.fleet_state import FleetState, HandLock, OpenRound
from fedgrass.protocol.messages import Base, ServerState
from fedgrass.protocol.names import SCORE, model_prefix, report_prefix, version_order
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.tables import free_hand, load_round, load_state, return_to_model, take_hand
from fedgrass.rounds_api import require_no_open_round

_PATIENCE = 900  # seconds after which a process that holds the fleet is taken for gone


def fleet_clients(account: Account) -> FleetClients:
    """Return the clients with which the fleet's models are published."""
    return FleetClients(
        fleet=account.fleet,
        bucket=Bucket(account.s3, account.stack.bucket),
        rounds=account.rounds_table,
        greengrass=account.session.client("greengrassv2"),
        thing_group_arn=account.stack.thing_group_arn,
        model_component=account.stack.model_component,
    )


def release(account: Account, version: str, *, canaries: bool = True) -> Release:
    """Release a model that its round held or only advanced to, as a round would: see `prepare_round`.

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
        If a round is open, or another person has a model in hand.
    SupersededError
        If the fleet has a newer model.
    CanaryError
        If the canaries refuse it.
    ReleaseError
        If no round made the version, it left no parameters, they are not those of the report, or an object is missing.
    """
    clients = replace(fleet_clients(account), registry=_registry(account))
    # Everything below is read after the fleet is held: read before, it could be of a state that a round has just
    # changed.
    with _held(account, clients, "release", version) as state:
        record = _round_of(clients, version)
        if record is None or record.outcome not in {"held", "advanced", "released", "refused"}:
            raise ReleaseError(
                f"model {version}: no round of fleet {account.fleet!r} has such a model to release; see `fedgrass round list`"
            )
        # An older version would reach devices as a roll-back, which they check for soundness only.
        if state.model is not None and version_order(state.model.version) > version_order(version):
            raise SupersededError(
                f"fleet {account.fleet!r} is at {state.model.version} already, which is newer than {version}. "
                "Roll back to an earlier version first, or leave it"
            )
        report = find_report(clients.bucket.client, clients.bucket.name, record)
        if report is None or report.model is None:
            raise _nothing_left(record)
        # Canaries that answered have decided already: a person overrules them, or agrees.
        tried = record.active + record.refused + record.rolled_back > 0
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
            bundle = _bundle_of(clients, record, report, Path(folder))
            # The optimizer's state of a held model lies beside the report. It moves first: the model must not become a
            # base without it.
            if record.outcome == "held" and report.server_state_sha256 is not None:
                release_held_state(clients.bucket, record, report.server_state_sha256, Path(folder))
            base, arn = prepare_round(bundle, clients, record, canaries=canaries and not tried)
            base = base.model_copy(update={"state": state_of(report)})
        # Last look before the commit: an object that is gone would fail every device, and no retry would bring it.
        _require_complete(clients, bundle.manifest)
        if not release_by_hand(clients.rounds, state, record, base):
            raise ReleaseError(f"fleet {account.fleet!r}: its state changed meanwhile; look again")
        # Only after the state: the deployment follows it, and whoever comes next repeats a deployment that was lost.
        deployment_id = deploy_current(clients.place, job=job_configuration(record.settings.rollout))
        package = register_released(clients.place, record, report)
    return Release(base, arn, deployment_id, clients.thing_group_arn, package)


def roll_back(account: Account, version: str) -> Release:
    """Roll back to a version that the fleet had: on its devices, and as the base of its next round.

    The fleet had what was released, and what a later round started from. It works in either direction, so that a roll-back
    can be undone. Running it again changes nothing.

    Raises
    ------
    RoundRefusedError
        If a round is open, or another person has a model in hand.
    ReleaseError
        If the fleet never had the version, an object of it is missing, or the fleet's state changes meanwhile.
    """
    clients = fleet_clients(account)
    with _held(account, clients, "roll-back", version) as state:
        record = _round_of(clients, version)
        # A model that was held was never the fleet's, so there is nothing to go back to; `release` is the way.
        if record is not None and not record.adopted:
            raise ReleaseError(
                f"model {version}: round {record.round} made it, but did not release it ({record.outcome}: {record.reason})"
            )
        manifest = _published(clients, version)
        if manifest is None:
            raise ReleaseError(
                f"model {version}: fleet {account.fleet!r} never had it, or its {MANIFEST} is gone "
                f"({clients.bucket.uri(model_prefix(clients.fleet, version) + MANIFEST)}); see its versions in the console"
            )
        _require_complete(clients, manifest)
        # With the state that its strategy left: momentum of a later model would push the restored one where that one
        # went.
        base = Base.of(manifest, clients.fleet, None if record is None else _state_of(clients, record))
        arn = make_component(manifest, clients)
        # Before the deployment, which follows it: a round that opened in between would train on the model that is withdrawn.
        if not return_to_model(clients.rounds, clients.fleet, state, base):
            raise ReleaseError(f"fleet {account.fleet!r}: its state changed meanwhile; look again")
        job = job_configuration(record.settings.rollout) if record is not None else None
        deployment_id = deploy_current(clients.place, job=job)
    return Release(base, arn, deployment_id, clients.thing_group_arn)


def _state_of(clients: FleetClients, record: RoundRecord) -> ServerState | None:
    """Return what the round's strategy left beside its model; a report that is gone does not hold a roll-back up."""
    with suppress(AggregationError):
        report = find_report(clients.bucket.client, clients.bucket.name, record)
        return None if report is None else state_of(report)
    return None


def released_bundle(account: Account, version: str, folder: Path) -> Bundle:
    """Fetch a version that the fleet has or had.

    Parameters
    ----------
    account
        The fleet's account.
    version
        The version.
    folder
        Where the bundle is written; must not exist.

    Returns
    -------
    Bundle
        The bundle, every file compared with its digest.

    Raises
    ------
    ReleaseError
        If the fleet never had that version, or an object of it is missing.
    """
    clients = fleet_clients(account)
    record = _round_of(clients, version)
    manifest = _published(clients, version)
    if manifest is None or (record is not None and not record.adopted):
        raise ReleaseError(f"model {version}: fleet {account.fleet!r} never had it; see its versions in the console")
    _require_complete(clients, manifest)
    return download_bundle(clients.bucket, Base.of(manifest, clients.fleet), folder)


@contextmanager
def _held(account: Account, clients: FleetClients, action: str, version: str) -> Iterator[FleetState]:
    """Hold the fleet, so that neither a round nor another person changes its model meanwhile; yields its state.

    Raises
    ------
    RoundRefusedError
        If a round is open, or another person has a model in hand.
    """
    state = require_no_open_round(account)
    # `require_no_open_round` lets a lock pass whose execution is gone; what that round left is finished first.
    if state.open is not None:
        _end_leftover(account, state.open)
    longest = _PATIENCE
    # The lock must outlast the canaries' time, or the next opening takes it for one that was left behind.
    if (record := _round_of(clients, version)) is not None and record.settings.rollout.canary_group:
        longest += record.settings.rollout.canary_seconds
    now = int(time.time())
    # A random holder: a second command of the same person must not free the first one's lock.
    lock = HandLock(action=action, version=version, holder=secrets.token_hex(8), until=now + longest)
    if not take_hand(clients.rounds, clients.fleet, lock, now):
        raise RoundRefusedError(_in_the_way(load_state(clients.rounds, clients.fleet), account.fleet))
    try:
        # A process that held the fleet before and died may have released half: that is done first.
        if state.hand is not None:
            finish_by_hand(clients.place, state.hand.version)
        yield load_state(clients.rounds, clients.fleet)
    finally:
        free_hand(clients.rounds, clients.fleet, lock)


def _in_the_way(state: FleetState, fleet: str) -> str:
    if state.open is not None:
        return f"round {state.open.round} of fleet {fleet!r} has just opened; wait for it, or end it with `fedgrass round cancel`"
    if state.hand is not None:
        return (
            f"fleet {fleet!r}: a person has model {state.hand.version} in hand ({state.hand.action}); try again when that is "
            f"done, or after {datetime.fromtimestamp(state.hand.until, timezone.utc):%H:%M} UTC"
        )
    return f"fleet {fleet!r}: its state changes; try again"


def _end_leftover(account: Account, lock: OpenRound) -> None:
    """Close a round whose execution is gone, as the next round's opening does."""
    from fedgrass.cloud.rounds.abort_round import abort
    from fedgrass.cloud.rounds.services import Services

    stack = account.stack
    services = Services(
        account.session,
        {
            "FEDGRASS_FLEET": account.fleet,
            "FEDGRASS_BUCKET": stack.bucket,
            "FEDGRASS_ROUNDS_TABLE": stack.rounds_table,
            "FEDGRASS_DEVICES_TABLE": stack.devices_table,
            "FEDGRASS_THING_GROUP_ARN": stack.thing_group_arn,
            "FEDGRASS_MODEL_COMPONENT": stack.model_component,
            "FEDGRASS_MODEL_PACKAGE_GROUP": stack.model_package_group,
            "FEDGRASS_IMAGE": stack.image,
        },
    )
    abort(services, lock.execution, outcome="failed", reason="its execution ended without closing it")


def _require_complete(clients: FleetClients, manifest: Manifest) -> None:
    """Raise `ReleaseError` unless every file of the version lies in the bucket: devices and rounds would fail on it for ever."""
    for name, file in manifest.files.items():
        key = model_prefix(clients.fleet, manifest.version) + name
        found = clients.bucket.size(key)
        if found != file.bytes:
            what = "is not there" if found is None else f"has {found} bytes, and {file.bytes} are expected"
            raise ReleaseError(
                f"model {manifest.version}: {clients.bucket.uri(key)} {what}; nothing was changed. Restore the object (the "
                "bucket keeps versions), or choose another model"
            )


def _registry(account: Account) -> Registry:
    return Registry(account.session.client("sagemaker"), account.stack.model_package_group, account.stack.image)


def _published(clients: FleetClients, version: str) -> Manifest | None:
    """Return the manifest of a version that lies complete in the bucket; None if there is none."""
    key = model_prefix(clients.fleet, version) + MANIFEST
    content = clients.bucket.read(key, max_bytes=MAX_MANIFEST_BYTES)
    return None if content is None else parse_manifest(content, name=clients.bucket.uri(key))


def _round_of(clients: FleetClients, version: str) -> RoundRecord | None:
    """Return the record of the round that made a version; None for one of the operator's."""
    _, number, _ = version_order(version)
    if number == 0:
        return None
    try:
        record = load_round(clients.rounds, clients.fleet, number)
    except RecordError:
        return None
    # The same number after the fleet started over may be another model.
    return record if record.version == version else None


def _bundle_of(clients: FleetClients, record: RoundRecord, report: RoundReport, folder: Path) -> Bundle:
    """Return the bundle that the round's job made: published if others needed it, else made again from what was kept."""
    manifest = _published(clients, record.version)
    if manifest is not None:
        made = download_bundle(clients.bucket, Base.of(manifest, clients.fleet), folder / "new")
    else:
        made = _made_again(clients, record, folder)
    if report.model is None or made.manifest.parameters_sha256 != report.model.parameters_sha256:
        raise ReleaseError(f"model {record.version}: is not the one that the report of round {record.round} describes")
    figures = report.evaluation.metrics if report.evaluation is not None else {}
    score = fleet_score(made.manifest.anomaly_quantile, figures)
    if score is not None:
        write_atomically(made.folder / SCORE, score)
    return made


def _made_again(clients: FleetClients, record: RoundRecord, folder: Path) -> Bundle:
    base = download_bundle(clients.bucket, record.base, folder / "base")
    # Shapes and dtypes are the base's, so twice its file is a bound with room to spare.
    most = 2 * base.path(PARAMETERS).stat().st_size + (1 << 20)
    content = clients.bucket.read(report_prefix(record.fleet, record.round) + PARAMETERS, max_bytes=most)
    if content is None:
        raise _nothing_left(record)
    write_atomically(folder / PARAMETERS, content)
    try:
        parameters, _ = tensors.load(folder / PARAMETERS)
    except TensorFileError as error:
        raise ReleaseError(
            f"model {record.version}: what round {record.round} kept of it is damaged ({error}). Restore {PARAMETERS} beside "
            "the round's report (the bucket keeps versions)"
        ) from error
    application = record.settings.inference
    return write_bundle(
        base, parameters, folder / "new", version=record.version, int8=application.int8, sparsity=application.sparsity
    )


def _nothing_left(record: RoundRecord) -> ReleaseError:
    why = record.reason or record.outcome
    return ReleaseError(f"model {record.version}: round {record.round} left no parameters to release ({why})")
