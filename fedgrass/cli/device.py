"""``fedgrass device``: commands to one device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption
from fedgrass.commands import Commander
from fedgrass.errors import CommandError, ConfigurationError, first_field, first_problem
from fedgrass.protocol import tables
from fedgrass.protocol.messages import FitTask, Reply

app = typer.Typer(no_args_is_help=True, help="Send commands to one device, and show its answers.")

Thing = Annotated[str, typer.Argument(help="The device: a thing's name.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="A published version (default: the one chosen by set-parameters, else the active one)."
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Download the parameters to this file.", dir_okay=False)
]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")]
_WAIT = 60.0


@app.command("get-parameters")
def get_parameters(
    thing: Thing,
    model: Model = None,
    output: Output = None,
    fleet: FleetOption = DEFAULT_FLEET,
    wait: Wait = _WAIT,
    as_json: Json = False,
) -> None:
    """Have the device upload its model's parameters."""
    _ask(fleet, thing, "get_parameters", wait, as_json, output, model=model)


@app.command("set-parameters")
def set_parameters(
    thing: Thing,
    model: Annotated[str, typer.Argument(help="A published version.")],
    fleet: FleetOption = DEFAULT_FLEET,
    wait: Wait = _WAIT,
    as_json: Json = False,
) -> None:
    """Choose the model that later commands use; the application's model stays."""
    _ask(fleet, thing, "set_parameters", wait, as_json, model=model)


@app.command()
def fit(
    thing: Thing,
    model: Model = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs (default: the fleet's setting).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate (default: the fleet's setting).")] = None,
    output: Output = None,
    fleet: FleetOption = DEFAULT_FLEET,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the answer.")] = 600,
    as_json: Json = False,
) -> None:
    """Have the device train, and upload the trained parameters."""
    settings = tables.load_settings(Account.of(fleet).rounds_table, fleet).fit
    task = changed(settings, epochs=epochs, learning_rate=learning_rate)
    _ask(fleet, thing, "fit", wait, as_json, output, model=model, fit=task)


def changed(settings: FitTask, **changes: float | None) -> FitTask:
    """Return the fleet's training settings with those changes that are not None.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        # Checked as a whole: model_copy would take any value.
        return FitTask.model_validate(settings.model_dump() | given)
    except ValidationError as error:
        name = first_field(error)
        raise ConfigurationError(
            f"--{name.replace('_', '-')}: {first_problem(error)}, found {given.get(name)!r}"
        ) from error


@app.command()
def evaluate(
    thing: Thing, model: Model = None, fleet: FleetOption = DEFAULT_FLEET, wait: Wait = _WAIT, as_json: Json = False
) -> None:
    """Have the device evaluate a model on its held-out examples."""
    _ask(fleet, thing, "evaluate", wait, as_json, model=model)


@app.command("roll-back")
def roll_back(
    thing: Thing,
    to: Annotated[str | None, typer.Option("--to", help="A version on the device (default: the one before).")] = None,
    reason: Annotated[str, typer.Option(help="Reason to keep with the model's history.")] = "the operator",
    fleet: FleetOption = DEFAULT_FLEET,
    wait: Wait = _WAIT,
    as_json: Json = False,
) -> None:
    """Roll the device back to an earlier model."""
    _ask(fleet, thing, "roll_back", wait, as_json, version=to, reason=reason)


@app.command()
def reply(
    thing: Thing,
    command: Annotated[str, typer.Argument(help="The command's id.")],
    output: Output = None,
    fleet: FleetOption = DEFAULT_FLEET,
    as_json: Json = False,
) -> None:
    """Show the answer to an earlier command."""
    commander = Commander(Account.of(fleet))
    found = commander.reply(thing, command)
    if found is None:
        raise CommandError(f"device {thing!r}: there is no answer to {command!r} yet, or it has expired")
    _show(commander, found, output, as_json)


def _ask(
    fleet: str, thing: str, kind: str, wait: float, as_json: bool, output: Path | None = None, **fields: Any
) -> None:
    commander = Commander(Account.of(fleet))
    _show(commander, commander.send(commander.make(thing, kind, **fields), patience=wait), output, as_json)


def _show(commander: Commander, reply: Reply, output: Path | None, as_json: bool) -> None:
    # An answer that is no success ends the command with 1: scripts go by that.
    if reply.status != "done":
        raise CommandError(f"device {reply.thing!r}: {reply.kind} {reply.status}: {reply.reason}")
    if output is not None:
        commander.fetch(reply, output)
    console = render.console()
    if as_json:
        # soft_wrap: a line that is folded is not JSON any more.
        console.print(reply.encode().decode(), markup=False, highlight=False, soft_wrap=True)
        return
    facts = Table(show_header=False, box=None)
    facts.add_row("device", reply.thing)
    facts.add_row("command", f"{reply.kind} ({reply.id}): [green]{reply.status}[/]")
    if reply.version:
        facts.add_row("model", reply.version)
    if reply.num_examples:
        facts.add_row("examples", f"{reply.num_examples:,}")
    for name, value in reply.metrics.items():
        facts.add_row(name, f"{value:.4g}")
    if reply.seconds_train:
        facts.add_row("trained", f"{reply.seconds_train:.1f} s")
    if reply.key:
        where = str(output) if output else f"s3://{reply.bucket}/{reply.key}"
        facts.add_row("parameters", f"{where} ({reply.bytes:,} bytes)")
    console.print(facts)
