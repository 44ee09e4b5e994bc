"""``fedgrass fleet``: the devices and the settings."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption, JsonOption
from fedgrass.cli.lazy import LazyGroup
from fedgrass.cli.rounds import merge
from fedgrass.errors import ConfigurationError
from fedgrass.files import write_atomically
from fedgrass.protocol import tables
from fedgrass.protocol.gain import Gain
from fedgrass.protocol.instances import shared_names
from fedgrass.protocol.members import FleetMember, fleet_members
from fedgrass.protocol.refusals import Refusals, refusals
from fedgrass.protocol.roster import may_count

app = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Look at the devices; change the settings.")


@app.command("list")
def list_devices(fleet: FleetOption = DEFAULT_FLEET, as_json: JsonOption = False) -> None:
    """List the devices: alive or silent, able to train or why not, their model, and how often their updates were refused."""
    account = Account.of(fleet)
    members = fleet_members(account.devices_table, fleet)
    refused, shared = refusals(account.rounds_table, fleet), shared_names(account.rounds_table, fleet)
    silos = tables.load_settings(account.rounds_table, fleet).silos
    if as_json:
        render.print_json(_facts(member, refused.get(member.thing), silos, shared) for member in members)
        return
    console = render.console()
    console.print(render.fleet_table(members, refused, now_ms=time.time() * 1000, silos=silos, shared=shared))
    # Only where devices have any; those that tell no figures are not among them.
    if gain := Gain.of_admissions(
        member.model.metrics for member in members if member.model and may_count(member.thing, silos)
    ):
        console.print(f"own models: {gain.said}", highlight=False, soft_wrap=True)


def _facts(
    member: FleetMember, refused: Refusals | None, silos: Collection[str], shared: Collection[str]
) -> dict[str, Any]:
    return {
        "thing": member.thing,
        "alive": member.alive(time.time() * 1000),
        "counts": may_count(member.thing, silos),
        "shares_its_name": member.thing in shared,
        "heartbeat": member.heartbeat and member.heartbeat.model_dump(mode="json"),
        "model": member.model and member.model.model_dump(mode="json", exclude={"fleet", "thing", "expires"}),
        "refused": refused.count if refused else 0,
    }


@app.command()
def helpers(
    things: Annotated[
        list[str],
        typer.Argument(
            help="Devices to use as helpers; of a helper in another account NAME=KEY, as its owner tells it "
            "(`fedgrass helper key`)."
        ),
    ],
    collude: Annotated[int, typer.Option(min=1, help="How many of them may collude with the cloud.")] = 1,
    bits: Annotated[int, typer.Option(help="Width of a masked value: 16 or 32.")] = 32,
    fleet: FleetOption = DEFAULT_FLEET,
) -> None:
    """Pin devices as the helpers of secure aggregation, by the keys in their heartbeats; and jobs of other accounts, by theirs.

    Compare each key with the one that the device shows: whoever controls the heartbeats could substitute another.
    """
    account = Account.of(fleet)
    told = {
        member.thing: member.heartbeat.trainer.helper_key
        for member in fleet_members(account.devices_table, fleet)
        if member.heartbeat
    }
    # A key that is given is not asked for; base64 ends with equals signs, so the first one parts it from the name.
    told.update(dict(thing.split("=", 1) for thing in things if "=" in thing))
    things = [thing.split("=", 1)[0] for thing in things]
    # All are looked at before anything is saved: half a list of helpers would be worse than none.
    for thing in things:
        if not told.get(thing):
            raise ConfigurationError(
                f"device {thing!r}: its heartbeat tells no helper's key; set helper to true for com.fedgrass.Trainer on it, and "
                "wait for a heartbeat"
            )
    pinned = [{"name": thing, "key": told[thing]} for thing in things]
    current = tables.load_settings(account.rounds_table, fleet)
    # Validated as a whole by the settings' own model.
    changed = current.overridden({"secure": {"helpers": pinned, "collude": collude, "bits": bits}})
    tables.save_settings(account.rounds_table, fleet, changed)
    console = render.console()
    for helper in pinned:
        console.print(f"{helper['name']}  {helper['key']}", highlight=False)


@app.command()
def profile(
    fleet: FleetOption = DEFAULT_FLEET,
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="The round that made it.", show_default="the newest")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show each feature, however many.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the profile to this file, as JSON.", dir_okay=False)
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page with a plot of each feature to this folder.", file_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the fleet's data are like: mean, deviation, range, histogram; and which devices do not fit.

    Made by `fedgrass round start --task statistics`.
    """
    from fedgrass.cli import profiles
    from fedgrass.profiles_api import fleet_profile

    found = fleet_profile(Account.of(fleet), number)
    console = render.console(quiet=as_json)
    if as_json:
        render.print_json([found.model_dump(mode="json", by_alias=True)])
    else:
        console.print(profiles.summary(found), highlight=False, soft_wrap=True)
        console.print(profiles.tables(found, everything=everything))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, found.to_json())
        console.print(f"wrote {output}", highlight=False)
    if page is not None:
        profiles.write_page(found, page)
        console.print(f"Page: [bold]{page / 'index.html'}[/]", highlight=False)


@app.command()
def drift(fleet: FleetOption = DEFAULT_FLEET, as_json: JsonOption = False) -> None:
    """Show how far the devices' live data are from the fleet's profile, and what follows from it.

    Devices compare where drift.action says so: `fedgrass fleet settings --set drift.action=alarm`.
    """
    from fedgrass.cli import drift as drifting
    from fedgrass.profiles_api import fleet_profile
    from fedgrass.protocol.drift import Standing

    account, now_ms = Account.of(fleet), time.time() * 1000
    own, state = tables.load_settings(account.rounds_table, fleet), tables.load_state(account.rounds_table, fleet)
    members = [member for member in fleet_members(account.devices_table, fleet) if may_count(member.thing, own.silos)]
    alive = [member.heartbeat for member in members if member.heartbeat and member.alive(now_ms)]
    profile = fleet_profile(account) if state.profile is not None else None
    standing = Standing.of(alive, own.drift, state.profile)
    said = alive, own.drift, profile, standing, tables.load_drift(account.rounds_table, fleet)
    if as_json:
        render.print_json([drifting.facts(*said)])
        return
    render.console().print(drifting.shown(*said), highlight=False)


@app.command()
def settings(
    fleet: FleetOption = DEFAULT_FLEET,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting for good, such as gate.tolerance=0.01; {} takes back a group of them, as in until={}.",
        ),
    ] = None,
) -> None:
    """Show the settings of the fleet's rounds, or change them."""
    account = Account.of(fleet)
    current = tables.load_settings(account.rounds_table, fleet)
    if setting:
        current = current.overridden(merge(setting))
        tables.save_settings(account.rounds_table, fleet, current)
    render.console().print_json(current.model_dump_json())
