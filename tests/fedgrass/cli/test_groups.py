"""Options of a command in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fedgrass.cli.groups import grouped


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1, help="Of the box.")] = 3
    name: Annotated[list[str] | None, typer.Option("--name")] = None


@dataclass(frozen=True)
class Colour:
    hue: Annotated[str, typer.Option(metavar="HUE")] = "red"


@dataclass(frozen=True)
class Wide:
    width: Annotated[int, typer.Option()] = 1


def test_fields_are_options_and_come_back_in_their_groups() -> None:
    app, called = typer.Typer(), []

    @app.command()
    @grouped
    def paint(place: Annotated[str, typer.Argument()], size: Size, colour: Colour) -> None:
        """Paint it."""
        called.append((place, size, colour))

    runner = CliRunner()
    assert runner.invoke(app, ["here", "--width", "5", "--name", "a", "--name", "b"]).exit_code == 0
    assert runner.invoke(app, ["there", "--hue", "blue"]).exit_code == 0
    assert called == [("here", Size(5, ["a", "b"]), Colour()), ("there", Size(), Colour("blue"))]
    refused = runner.invoke(app, ["here", "--width", "0"])
    assert refused.exit_code == 2
    shown = runner.invoke(app, ["--help"]).output
    assert "Paint it." in shown
    assert "Of the box." in shown


def test_two_groups_with_one_option_are_refused() -> None:
    def paint(size: Size, wide: Wide) -> None:
        """Never called."""

    with pytest.raises(TypeError, match="width"):
        grouped(paint)
