"""The ``fedgrass`` command: drive rounds and look at the fleet, in whatever account the environment names.

Commands of other parts (publishing a model, exporting one) are found by entry point, so that this package imports none
of them.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console

from fedgrass import __version__
from fedgrass.cli import device, fleet, model, rounds, silo
from fedgrass.errors import FedgrassError

ENTRY_POINT_GROUP = "fedgrass.commands"

cli = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated learning for AWS IoT Greengrass fleets. The account, region and endpoint are those of the AWS "
    "environment variables and profile.",
)
cli.add_typer(rounds.app, name="round")
cli.add_typer(fleet.app, name="fleet")
cli.add_typer(device.app, name="device")
cli.add_typer(model.app, name="model")
cli.add_typer(silo.app, name="silo")

_GROUPS = {"model": model.app, "fleet": fleet.app, "round": rounds.app}


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"fedgrass {__version__}", highlight=False)
        raise typer.Exit


@cli.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of every command."""


def _add_plugins() -> None:
    """Add each entry point: ``group.name`` joins a group above, a plain name the top level; a group may come whole."""
    for plugin in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        group, _, name = plugin.name.rpartition(".")
        loaded = plugin.load()
        if isinstance(loaded, typer.Typer):
            cli.add_typer(loaded, name=name)
        else:
            _GROUPS.get(group, cli).command(name)(loaded)


def app() -> None:
    """Run the command line; a failure that a user can meet is one clear message and exit code 1."""
    from botocore.exceptions import BotoCoreError, ClientError

    _add_plugins()
    errors = Console(stderr=True, highlight=False)
    try:
        cli()
    except FedgrassError as error:
        errors.print(f"[bold red]{error.code}[/]: {error}", markup=True)
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        errors.print(f"[bold red]AWS refused {error.operation_name}[/]: {code}: {message}")
    except BotoCoreError as error:
        errors.print(f"[bold red]AWS could not be asked[/]: {error}. Check credentials, region and endpoint")
    else:
        return
    sys.exit(1)
