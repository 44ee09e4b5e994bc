"""``fedgrass silo``: the training jobs of other accounts that take part (docs/silos.md)."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption, JsonOption
from fedgrass.silos import ENDED, Silo, pinned_image

app = typer.Typer(no_args_is_help=True, help="Start, watch and stop the training jobs of silos: other AWS accounts.")

SiloArgument = Annotated[list[str], typer.Argument(help="Silos by name, such as 111111111111-clinic.")]
RegionOption = Annotated[str | None, typer.Option(help="Region of their jobs, if it differs from the fleet's.")]


@app.command()
def image(fleet: FleetOption = DEFAULT_FLEET) -> None:
    """Show the fleet's image by its digest: the value for the parameter Image of a silo's stack."""
    render.console().print(pinned_image(Account.of(fleet)), soft_wrap=True, highlight=False)


@app.command()
def start(
    silos: SiloArgument,
    fleet: FleetOption = DEFAULT_FLEET,
    rounds: Annotated[int, typer.Option(min=1, max=500, help="Rounds to take part in; then the job ends.")] = 1,
    region: RegionOption = None,
) -> None:
    """Start silos' jobs, which then wait for rounds; start the rounds next. Each silo's own account defines its job."""
    account, console = Account.of(fleet), render.console()
    # All are looked up before the first is started: a misspelt name starts nobody.
    for silo in [Silo.of(account, name, region=region) for name in silos]:
        job = silo.start(rounds)
        console.print(
            f"Started: [bold]{silo.name}[/] for {rounds} round{'s' * (rounds > 1)}, job {job.name}.", soft_wrap=True
        )
    console.print("See `fedgrass silo status`; a silo that is up is shown by `fedgrass fleet list`.")


@app.command()
def status(
    silos: SiloArgument,
    fleet: FleetOption = DEFAULT_FLEET,
    region: RegionOption = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Number of jobs to show for each.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Show silos' last jobs: their status, or why they failed."""
    account = Account.of(fleet)
    if as_json:
        render.print_json(
            {"silo": name, **vars(job)} for name in silos for job in Silo.of(account, name, region=region).jobs(limit)
        )
        return
    shown = Table("silo", "job", "started", "rounds", "status", "reason")
    for name in silos:
        for job in Silo.of(account, name, region=region).jobs(limit):
            rounds = "" if job.rounds is None else str(job.rounds)
            started = f"{job.started:%Y-%m-%d %H:%M:%S}"
            shown.add_row(name, job.name, started, rounds, job.status, escape(job.reason))
    render.console().print(shown)


@app.command()
def stop(silos: SiloArgument, fleet: FleetOption = DEFAULT_FLEET, region: RegionOption = None) -> None:
    """Stop silos' running jobs; rounds continue without them. Safe to repeat."""
    account, console = Account.of(fleet), render.console()
    for name in silos:
        silo = Silo.of(account, name, region=region)
        going_on = [job for job in silo.jobs() if job.status not in ENDED and job.status != "starting"]
        for job in going_on:
            silo.stop(job)
            console.print(f"[bold]{name}[/]: job {job.name} is being stopped.", soft_wrap=True)
        if not going_on:
            console.print(f"[bold]{name}[/] has no job to stop.")
