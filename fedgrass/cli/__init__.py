"""The ``fedgrass`` command: drive rounds and look at the fleet, in whatever account the environment names.

A command is imported when it is used, so that ``--help`` answers at once. Those of other parts (publishing a model,
exporting one) are found by entry point, so that this package imports none of them.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console

from fedgrass import __version__
from fedgrass.cli.lazy import LazyGroup, own_groups, plugins
from fedgrass.errors import FedgrassError


class _Root(LazyGroup):
    """All groups and commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.extend(own_groups() | plugins(""))


cli = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated learning for AWS IoT Greengrass fleets. The account, region and endpoint are those of the AWS "
    "environment variables and profile.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"fedgrass {__version__}", highlight=False)
        raise typer.Exit


@cli.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of every command."""


def app() -> None:
    """Run the command line; a failure that a user can meet is one clear message and exit code 1."""
    try:
        cli()
    # The one place that catches everything: what is no message for a user is raised again, as a fault of ours.
    except Exception as error:
        message = _message(error)
        if not message:
            raise
        Console(stderr=True, highlight=False).print(message, markup=True)
        sys.exit(1)


def _message(error: Exception) -> str:
    """Return what a user reads of an error; nothing for one that is a fault of the code."""
    if isinstance(error, FedgrassError):
        return f"[bold red]{error.code}[/]: {error}"
    # Imported here: what needs no AWS answers sooner without it.
    from botocore.exceptions import BotoCoreError, ClientError

    # AWS's own code and message, which its documentation knows.
    if isinstance(error, ClientError):
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        return f"[bold red]AWS refused {error.operation_name}[/]: {code}: {message}"
    if isinstance(error, BotoCoreError):
        return f"[bold red]AWS could not be asked[/]: {error}. Check credentials, region and endpoint"
    return ""
