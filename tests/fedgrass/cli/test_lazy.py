"""What ``fedgrass --help`` says without importing a command is what the command says of itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedgrass.cli import cli, lazy
from fedgrass.cli.lazy import ENTRY_POINT_GROUP, LazyGroup, Part


def every_part() -> dict[str, Part]:
    parts = lazy.own_groups() | lazy.plugins("")
    for group in lazy.own_groups():
        parts |= {f"{group}.{name}": part for name, part in lazy.plugins(group).items()}
    return parts


@pytest.mark.parametrize("name", sorted(every_part()))
def test_a_summary_is_the_first_line_of_the_commands_own_help(name: str) -> None:
    part = every_part()[name]
    assert part.load(name.rpartition(".")[2]).get_short_help_str(limit=500) == part.summary


def test_no_summary_is_left_of_a_command_that_is_gone() -> None:
    assert set(lazy.SUMMARIES) == set(every_part())


def test_help_imports_none_of_what_it_lists() -> None:
    code = """
import sys
sys.argv = ["fedgrass", *sys.argv[1:]]
from fedgrass.cli import app
try:
    app()
except SystemExit:
    pass
print("IMPORTED", *sorted({name.split(".")[0] for name in sys.modules} & {"numpy", "pydantic", "boto3", "botocore", "jinja2"}))
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "Start, watch, list, aggregate" in done.stdout
    assert done.stdout.splitlines()[-1] == "IMPORTED"


def test_another_packages_command_is_imported_to_be_listed() -> None:
    parent = typer.Typer(cls=LazyGroup, help="A group.")
    parent.callback()(lambda: None)
    group: Any = typer.main.get_group(parent)
    group.extend({"theirs": Part(EntryPoint("theirs", f"{__name__}:_their_command", ENTRY_POINT_GROUP))})
    assert group.get_command(None, "theirs").get_short_help_str() == "Do what another package does."
    assert list(group.commands) == ["theirs"]


def test_a_mistyped_command_of_a_group_is_answered_with_what_was_meant() -> None:
    assert "'export'" in CliRunner().invoke(cli, ["model", "expert"]).output


def _their_command() -> None:
    """Do what another package does."""
