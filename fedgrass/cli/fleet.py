"""``fedgrass fleet``: the devices and the settings."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption
from fedgrass.cli.rounds import merge
from fedgrass.protocol import tables
from fedgrass.protocol.refusals import refusals

app = typer.Typer(no_args_is_help=True, help="Look at the devices; change the settings.")


@app.command("list")
def list_devices(fleet: FleetOption = DEFAULT_FLEET) -> None:
    """List the devices: alive or silent, able to train or why not, their model, and how often their updates were refused."""
    account = Account.of(fleet)
    members = tables.fleet_members(account.devices_table, fleet)
    refused = refusals(account.rounds_table, fleet)
    silos = tables.load_settings(account.rounds_table, fleet).silos
    render.console().print(render.fleet_table(members, refused, now_ms=time.time() * 1000, silos=silos))


@app.command()
def settings(
    fleet: FleetOption = DEFAULT_FLEET,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting for good, such as gate.tolerance=0.01.")
    ] = None,
) -> None:
    """Show the settings of the fleet's rounds, or change them."""
    account = Account.of(fleet)
    current = tables.load_settings(account.rounds_table, fleet)
    if setting:
        current = current.overridden(merge(setting))
        tables.save_settings(account.rounds_table, fleet, current)
    render.console().print_json(current.model_dump_json())
