"""The fleet's endpoint: part of its stack, off until a version is named, and gone with the stack."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedgrass.account import Account
from fedgrass.bundle import INFERENCE
from fedgrass.cloud.aggregator.manual_release import fleet_clients, released_bundle
from fedgrass.cloud.aggregator.registry import store_archive
from fedgrass.cloud.infrastructure.deploy import change_parameters
from fedgrass.cloudformation import stack_output
from fedgrass.errors import InfrastructureError, ReleaseError
from fedgrass.protocol.tables import load_state


def serve(account: Account, version: str | None = None, *, instance_type: str = "") -> tuple[str, str]:
    """Have the fleet's endpoint serve a version, and wait until it does; safe to repeat.

    Parameters
    ----------
    version
        One that the fleet has or had; the current one if None.
    instance_type
        Machine of the endpoint; empty for a serverless one.

    Returns
    -------
    (str, str)
        The endpoint's name, and the version.

    Raises
    ------
    ReleaseError
        If the fleet never had the version, or it is none that can be served.
    InfrastructureError
        If the stack could not be changed; the message has CloudFormation's reason.
    """
    if version is None:
        current = load_state(account.rounds_table, account.fleet).model
        if current is None:
            raise ReleaseError(f"fleet {account.fleet!r} has no model yet: `fedgrass model publish`")
        version = current.version
    # Fetched and looked at before the stack changes: CloudFormation would find out after minutes.
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder:
        bundle = released_bundle(account, version, Path(folder) / "bundle")
        if INFERENCE not in bundle.manifest.files:
            raise ReleaseError(
                f"model {version}: has no {INFERENCE}; models of other engines than LiteRT are not served"
            )
        # A version that was rolled back to, or published by hand, has no archive yet.
        store_archive(bundle, fleet_clients(account).bucket, account.fleet)
    change_parameters(account.session, account.fleet, {"ServedVersion": version, "ServingInstanceType": instance_type})
    name = stack_output(account.session, account.fleet, "EndpointName")
    if name is None:
        raise InfrastructureError(
            f"fleet {account.fleet!r}: its stack has no endpoint; deploy it again (scripts/deploy)"
        )
    return name, version


def stop_serving(account: Account) -> None:
    """Remove the fleet's endpoint; safe to repeat."""
    change_parameters(account.session, account.fleet, {"ServedVersion": "", "ServingInstanceType": ""})
