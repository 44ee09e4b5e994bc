"""Command groups that import a command when it is used: listing them needs their names and one line each."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from fedgrass.registry import registered

if TYPE_CHECKING:
    from typer import _click as click

ENTRY_POINT_GROUP = "fedgrass.commands"

#: What ``--help`` says of each command that is imported later. A test holds it to what the command says of itself.
SUMMARIES = {
    "round": "Start, watch, list, aggregate, cancel and resume rounds.",
    "fleet": "Look at the devices; change the settings.",
    "device": "Send commands to one device, and show its answers.",
    "model": "Look at model bundles, and publish them.",
    "silo": "Start, watch and stop the training jobs of silos: other AWS accounts.",
    "aggregate": "Aggregate a folder of updates without AWS: the same checks, the same strategies, the same bytes.",
    "console": "View and control the fleet, its rounds and its models in a browser.",
    "helper": "Run a helper of secure aggregation as a job in an AWS account of its own: invite, deploy, key, fleet helpers.",
    "flower": "Run a Flower app as it is.",
    "simulate": "Try a federation on virtual devices; several runs in one chart.",
    "model.create": "Create a model bundle for a task: a default architecture, or for images a known network with your weights.",
    "model.export": "Export a Keras model, a PyTorch module or a SavedModel as a bundle that devices can train without either "
    "library.",
    "model.publish": "Publish a model bundle to a fleet: its first model, or a new graph.",
    "model.release": "Release a model that its round held, or used only as the base of the next round.",
    "model.roll-back": "Roll back to an earlier version: on the devices, and as the base of the next round.",
    "model.serve": "Serve a released model by a SageMaker endpoint, for applications that are not on a device.",
}


@dataclass(frozen=True)
class Part:
    """A command or group that is defined elsewhere: its entry point, and its line in a listing.

    ``summary`` is empty for another package's command: a listing has to import that one to know.
    """

    where: EntryPoint
    summary: str = ""

    def load(self, name: str) -> click.Command:
        """Import it: a function becomes a command, an application a group, with what entry points add to it."""
        found = self.where.load()
        parent = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=name)
        else:
            parent.command(name)(found)
        parent.callback()(lambda: None)  # without it, typer makes no group of a single command
        command = typer.main.get_group(parent).commands[name]
        if isinstance(command, LazyGroup):
            command.extend(plugins(name))
        return command


def plugins(group: str) -> dict[str, Part]:
    """Return the entry points of a group by name: ``group.name`` belongs to that group, a plain name to the root, ``""``."""
    found = {}
    for entry in sorted(registered(ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        owner, _, name = entry.name.rpartition(".")
        if owner == group:
            found[name] = Part(entry, SUMMARIES.get(entry.name, ""))
    return found


def own_groups() -> dict[str, Part]:
    """Return the groups of this package by name."""
    # Names and modules differ where a name is a Python builtin: round.
    modules = {"round": "rounds", "fleet": "fleet", "device": "device", "model": "model", "silo": "silo"}
    return {
        name: Part(EntryPoint(name, f"fedgrass.cli.{module}:app", ENTRY_POINT_GROUP), SUMMARIES[name])
        for name, module in modules.items()
    }


class LazyCommands(MutableMapping[str, "click.Command"]):
    """Commands by name, of which some are imported when they are first asked for."""

    def __init__(self, commands: MutableMapping[str, click.Command], parts: dict[str, Part]) -> None:
        self._commands = commands
        self._parts = parts

    def listed(self, name: str) -> click.Command | None:
        """Return what a listing shows: the command itself if it is here, else its name and summary."""
        part = self._parts.get(name)
        if name in self._commands or part is None or not part.summary:
            return self.get(name)
        # A stand-in with the name and the summary: what it is of is not imported.
        return TyperCommand(name, help=part.summary)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._commands:
            self._commands[name] = self._parts[name].load(name)
        return self._commands[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        self._parts.pop(name, None)
        self._commands.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        # dict.fromkeys keeps the order and drops what is in both.
        return iter(dict.fromkeys((*self._parts, *self._commands)))

    def __len__(self) -> int:
        return len(self._parts.keys() | self._commands.keys())


class LazyGroup(TyperGroup):
    """A group whose parts are imported when they are used."""

    def extend(self, parts: dict[str, Part]) -> None:
        """Add parts to the group's own commands."""
        self.commands = LazyCommands(self.commands, parts)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names, of what is imported and what is not."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return a command for a listing; ``resolve_command`` has imported the one that is run."""
        return (
            self.commands.listed(cmd_name) if isinstance(self.commands, LazyCommands) else self.commands.get(cmd_name)
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that is run, then find it as any group does."""
        # `get_command` would give the stand-in; asking by item imports the command.
        self.commands.get(args[0])
        return super().resolve_command(ctx, args)
