"""Options of many commands: the fleet, and JSON for scripts."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")]

FleetOption = Annotated[
    str,
    typer.Option("--fleet", "-f", envvar="FEDGRASS_FLEET", help="The fleet: a thing group's name.", show_default=True),
]
