"""What the command line offers of this package; plain functions with typer's annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgrass.bundle import Bundle
from fedgrass.cli.account import DEFAULT_FLEET, Account, FleetOption


def publish(
    folder: Annotated[Path, typer.Argument(help="The model bundle: a folder with model.json.", exists=True)],
    fleet: FleetOption = DEFAULT_FLEET,
) -> None:
    """Publish a model bundle to a fleet: its first model, or a new graph.

    Uploads it, makes it a version of its model component, deploys it if the fleet has a deployment, and makes it the
    base of the next round. Running it again changes nothing.
    """
    from cloud.aggregator.release import FleetClients, publish_model
    from cloud.aggregator.s3 import Bucket

    account = Account.of(fleet)
    clients = FleetClients(
        fleet=fleet,
        bucket=Bucket(account.session.client("s3"), account.stack.bucket),
        rounds=account.rounds_table,
        greengrass=account.session.client("greengrassv2"),
        thing_group_arn=account.stack.thing_group_arn,
        model_component=account.stack.model_component,
    )
    released = publish_model(Bundle.open(folder), clients)
    typer.echo(f"{released.component_arn} is the current model of fleet {fleet}")
    if released.deployment_id is None:
        typer.echo(f"{clients.thing_group_arn} has no deployment yet: devices get the model with their first one")
    else:
        typer.echo(f"deployed by {released.deployment_id}")
