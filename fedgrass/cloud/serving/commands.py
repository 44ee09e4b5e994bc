"""What the command line offers of this package."""

from __future__ import annotations

from typing import Annotated

import typer

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli.account import FleetOption
from fedgrass.errors import ConfigurationError


def serve(
    version: Annotated[
        str | None, typer.Argument(help="A version that the fleet has or had (default: the current one).")
    ] = None,
    fleet: FleetOption = DEFAULT_FLEET,
    instance_type: Annotated[
        str,
        typer.Option(help="Instance type of an always-on endpoint, such as ml.m5.large, instead of a serverless one."),
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="Remove the endpoint.")] = False,
) -> None:
    """Serve a released model by a SageMaker endpoint, for applications that are not on a device.

    The endpoint is part of the fleet's stack and off by default; a serverless one costs nothing while nobody asks. It takes and
    gives application/json, text/csv and application/x-npy. Rounds do not change it: serve the new version when you mean it.
    Running it again changes nothing.
    """
    from fedgrass.cloud.serving import endpoint

    account = Account.of(fleet)
    if off:
        if version is not None or instance_type:
            raise ConfigurationError("--off removes the endpoint: give neither a version nor --instance-type with it")
        endpoint.stop_serving(account)
        typer.echo(f"fleet {fleet} has no endpoint any more")
        return
    name, served = endpoint.serve(account, version, instance_type=instance_type)
    typer.echo(f"endpoint {name} serves model {served} of fleet {fleet}")
