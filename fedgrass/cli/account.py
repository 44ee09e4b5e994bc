"""The option that names the fleet, for every command."""

from __future__ import annotations

from typing import Annotated

import typer

FleetOption = Annotated[
    str,
    typer.Option("--fleet", "-f", envvar="FEDGRASS_FLEET", help="The fleet: a thing group's name.", show_default=True),
]
