"""``fedgrass flower``: apps of Flower's users, as they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgrass.account import Account
from fedgrass.cli.account import JsonOption

app = typer.Typer(no_args_is_help=True, help="Run a Flower app as it is.")


@app.callback()
def _group() -> None:
    """Keep `run` a command of the group."""


@app.command()
def run(
    folder: Annotated[
        Path, typer.Argument(metavar="APP", help="A Flower app's directory.", exists=True, file_okay=False)
    ],
    fleet: Annotated[
        str | None, typer.Option(help="Run it on this fleet's devices.", show_default="virtual devices here")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Virtual devices.", show_default="as the app's federation says, else 10")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="as many as there are processors")
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", help="A setting of the app's, such as num-server-rounds=2; may be repeated."),
    ] = None,
    replace_model: Annotated[
        bool,
        typer.Option("--replace-model", help="With --fleet: the app's initial model takes the place of another model."),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="With --fleet: begin again where this very run was interrupted, or is done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a Flower app as it is, its own strategy and rounds: on virtual devices here, or on a fleet.

    What the app writes goes to the present directory, as with flwr run. On a fleet the ServerApp runs here, each of its rounds is
    a round of the fleet, and devices get the ClientApp's code with the model; the deployment to the fleet is changed for that.
    Run it again to go on after an interruption. What has no counterpart is said before the first round opens.
    """
    given = dict(map(_setting, run_config or ()))
    if fleet is not None:
        if devices is not None or workers is not None:
            raise typer.BadParameter(
                "is of virtual devices; leave it out with --fleet", param_hint="--devices, --workers"
            )
        _run_on_fleet(folder, fleet, given, replace_model=replace_model, anew=anew, as_json=as_json)
        return
    if replace_model or anew:
        raise typer.BadParameter("is of a fleet; name it with --fleet", param_hint="--replace-model, --anew")
    _run_here(folder, devices, workers, given, as_json=as_json)


def _run_here(folder: Path, devices: int | None, workers: int | None, given: dict[str, Any], *, as_json: bool) -> None:
    from rich.console import Console

    from fedgrass.simulation.flower.run import run_app

    console = Console(stderr=True, highlight=False)
    found = run_app(
        folder,
        devices=devices,
        workers=workers,
        run_config=given,
        said=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    messages = ", ".join(f"{count} of {kind}" for kind, count in found.messages.items()) or "none"
    failed = f", [red]{found.failed} of them failed[/]" if found.failed else ""
    Console(highlight=False).print(
        f"Ran on {found.devices} devices in {found.seconds:.1f} s ({found.peak_mb:.0f} MB at most): messages {messages}{failed}."
    )


def _run_on_fleet(
    folder: Path, fleet: str, given: dict[str, Any], *, replace_model: bool, anew: bool, as_json: bool
) -> None:
    from rich.console import Console
    from rich.live import Live

    from fedgrass.cli.render import round_line
    from fedgrass.cloud.flower.run import run_on_fleet

    console = Console(stderr=True, highlight=False)
    try:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            found = run_on_fleet(
                folder,
                Account.of(fleet),
                run_config=given,
                replace_model=replace_model,
                anew=anew,
                said=lambda text: live.console.print(text, markup=False, soft_wrap=True),
                shown=lambda record: live.update(round_line(record)),
            )
    except KeyboardInterrupt:
        console.print(
            "Stopped. A round that is open ends by itself (`fedgrass round cancel` ends it now); the same command goes on from "
            "there."
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console.print(f"{found.rounds} rounds are done: fleet {found.fleet} is at model {found.version}.")


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise typer.BadParameter(
            f"{text!r}: expected NAME=VALUE, such as num-server-rounds=2", param_hint="--run-config"
        )
    try:
        found = json.loads(value)
    except ValueError:
        found = value.strip().strip("'\"")
    return name.strip(), found if isinstance(found, bool | int | float | str) else value
