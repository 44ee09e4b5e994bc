"""docs/reference/commands.md: every command, with its arguments and options, as typer has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import typer

from fedgrass import cli
from fedgrass.cloud.infrastructure import deploy, destroy, provision, publish
from fedgrass.local.demo.__main__ import main as demo

SCRIPTS: dict[str, Callable[..., None]] = {
    "./scripts/demo": demo,
    "./scripts/deploy": deploy.main,
    "./scripts/publish": publish.main,
    "./scripts/provision": provision.main,
    "./scripts/destroy": destroy.main,
}


def page() -> str:
    """Return the whole page."""
    parts = [
        "# Commands\n\nMade from the code by `scripts/reference`. Each has `--help`. Account, region and endpoint are those of "
        "the AWS environment variables and profile.\n",
        *_sections("fedgrass", typer.main.get_command(cli.cli)),
        "## Scripts\n",
    ]
    for name, main in SCRIPTS.items():
        app = typer.Typer(add_completion=False)
        app.command()(main)
        parts += _sections(name, typer.main.get_command(app))
    return "\n".join(parts)


def _sections(path: str, command: Any) -> Iterator[str]:
    """One section for a command, or for each command of a group."""
    below = getattr(command, "commands", None)
    if below is None:
        yield f"### `{path}`\n\n{_plain(command.help)}\n\n{_table(command.params)}"
        return
    # Commands before groups: a group begins a chapter of its own.
    groups = sorted(below, key=lambda name: (hasattr(below[name], "commands"), name))
    for name in groups:
        if hasattr(below[name], "commands"):
            options = _table(below[name].params) if below[name].invoke_without_command else ""
            yield f"## `{path} {name}`\n\n{_plain(below[name].help)}\n\n{options}".rstrip() + "\n"
        yield from _sections(f"{path} {name}", below[name])


def _table(parameters: list[Any]) -> str:
    rows = [
        _row(parameter)
        for parameter in parameters
        if parameter.name != "help" and not getattr(parameter, "hidden", False)
    ]
    return "| argument or option | default | |\n|---|---|---|\n" + "".join(rows) if rows else ""


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    name = " ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
    default = parameter.default() if callable(parameter.default) else parameter.default
    if parameter.required:
        shown = "**required**"
    elif default is None or default == "" or default is False or default == []:
        shown = ""
    else:
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
    variable = f" [`{parameter.envvar}`]" if parameter.envvar else ""
    return f"| `{name}` | {shown} | {_plain(getattr(parameter, 'help', None))}{variable} |\n"


def _plain(text: str | None) -> str:
    """Return a help text without line breaks within its paragraphs."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text or ""))
    # A bar would end the table's cell.
    return "\n\n".join(paragraphs).replace("|", "\\|")
