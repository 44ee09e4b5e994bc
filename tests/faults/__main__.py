"""``python -m tests.faults``: put faults into a local fleet and print what became of it. See docs/reference/faults.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedgrass.local.demo.run import Demo, DemoOptions
from tests.faults import campaign
from tests.faults.campaign import Findings
from tests.faults.fleet import FaultyFleet
from tests.faults.injectors import FAULTS, KILLS

_WHEELS = Path(__file__).resolve().parents[2] / ".fedgrass" / "wheels"


def main(
    kills: Annotated[int, typer.Option(help="How often each process is killed.")] = 100,
    times: Annotated[int, typer.Option(help="How often each other fault is put in.")] = 10,
    devices: Annotated[int, typer.Option(help="Core devices; every second one runs nucleus lite.", min=2)] = 2,
    between: Annotated[float, typer.Option(help="Longest pause before a device's next fault, in seconds.")] = 4.0,
    only: Annotated[str, typer.Option(help="Only faults whose name holds this text.")] = "",
    seed: Annotated[int, typer.Option(help="Fixes order and moments, as far as processes allow.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Keep the fleet's folder here, logs included.")] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Run nothing: add up the JSON lines that earlier runs printed.")
    ] = None,
) -> None:
    """Put faults into a local fleet that runs rounds all the while; exit code 1 if a promise was broken.

    A long campaign can be run in parts, each with a seed of its own, whose lines --merge adds up.
    """
    if merge:
        lines = [line for file in merge for line in file.read_text().splitlines() if line.startswith("{")]
        report(campaign.merged(lines))
    plan = {name: kills if name in KILLS else times for name in FAULTS if only in name}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        options = DemoOptions(devices=devices, rounds=1, seed=1)
        with Demo(options, place / "fleet", cache=_WHEELS, console=console, make_fleet=FaultyFleet) as demo:
            demo.start()
            (place / "models").mkdir(exist_ok=True)
            findings = campaign.run(demo, place / "models", plan, seed=seed, between=between)
    report(findings)


def report(findings: Findings) -> None:
    """Print the table and one line of JSON, and end the process."""
    show(findings, Console(width=120))
    print(findings.line)
    sys.exit(0 if findings.clean else 1)


def show(findings: Findings, console: Console) -> None:
    """Print the table."""
    table = Table("fault", "injected", "outcomes", "updates lost")
    for name, outcomes in findings.outcomes.items():
        said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        table.add_row(name, str(outcomes.total()), said, "0" if not findings.lost else "see below")
    console.print(table)
    console.print(
        f"{findings.rounds} rounds in {findings.seconds:.0f} s; updates accepted {findings.accepted}, "
        f"lost {len(findings.lost)} {findings.lost or ''}, counted twice {findings.counted_twice}; "
        f"looks for the active model {findings.looks}, in vain {findings.without_model}; "
        f"hung {len(findings.hung)} {findings.hung or ''}",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
