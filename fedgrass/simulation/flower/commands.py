"""``fedgrass flower``: apps of Flower's users, as they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

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
    as_json: JsonOption = False,
) -> None:
    """Run a Flower app's ServerApp and ClientApp on virtual devices here: its own strategy and rounds, nothing changed.

    What the app writes goes to the present directory, as with flwr run. What has no counterpart is not run and said: a
    federation's other options, such as its processors per device.
    """
    from rich.console import Console

    from fedgrass.simulation.flower.run import run_app

    console = Console(stderr=True, highlight=False)
    found = run_app(
        folder,
        devices=devices,
        workers=workers,
        run_config=dict(map(_setting, run_config or ())),
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
