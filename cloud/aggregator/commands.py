"""What the command line offers of this package; plain functions with typer's annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgrass.bundle import Bundle


def publish(
    folder: Annotated[Path, typer.Argument(help="The model bundle: a folder with model.json.", exists=True)],
    fleet: Annotated[str, typer.Option(help="The fleet, as its thing group is named.", envvar="FEDGRASS_FLEET")],
    bucket: Annotated[str, typer.Option(help="The fleet's bucket.", envvar="FEDGRASS_BUCKET")],
    rounds_table: Annotated[str, typer.Option(help="The rounds table.", envvar="FEDGRASS_ROUNDS_TABLE")],
    thing_group_arn: Annotated[str, typer.Option(help="The thing group's ARN.", envvar="FEDGRASS_THING_GROUP_ARN")],
) -> None:
    """Publish a model bundle to a fleet: its first model, or a new graph.

    Uploads it, makes it a version of com.fedgrass.GlobalModel, deploys it if the fleet has a deployment, and makes it the
    base of the next round. Running it again changes nothing.
    """
    from cloud.aggregator.clients import connect
    from cloud.aggregator.config import FleetPlace
    from cloud.aggregator.release import publish_model

    place = FleetPlace.checked(fleet=fleet, bucket=bucket, rounds_table=rounds_table, thing_group_arn=thing_group_arn)
    clients, _ = connect(place)
    released = publish_model(Bundle.open(folder), clients)
    typer.echo(f"{released.component_arn} is the current model of fleet {fleet}")
    if released.deployment_id is None:
        typer.echo(f"{thing_group_arn} has no deployment yet: devices get the model with their first one")
    else:
        typer.echo(f"deployed by {released.deployment_id}")
