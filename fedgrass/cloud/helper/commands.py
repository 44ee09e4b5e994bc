"""``fedgrass helper``: a helper of secure aggregation in an account of its own (docs/how-to/helper-account.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption, JsonOption
from fedgrass.errors import ConfigurationError, InfrastructureError

if TYPE_CHECKING:
    from fedgrass.cloud.helper.stack import HelperStack

app = typer.Typer(
    no_args_is_help=True,
    help="Run a helper of secure aggregation as a job in an AWS account of its own: invite, deploy, key, fleet helpers.",
)

NameArgument = Annotated[str, typer.Argument(help="The helper's name in this account, such as audit.")]


def _stack(name: str) -> HelperStack:
    # Imported here: --help needs no AWS.
    from fedgrass.cloud.helper.stack import HelperStack
    from fedgrass.cloud.infrastructure.script import identify, own_session

    session = own_session()
    identify(session)
    return HelperStack(session, name)


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The helper as the fleet is to know it: 111111111111-audit.")],
    fleet: FleetOption = DEFAULT_FLEET,
) -> None:
    """Show what the helper's owner has to run. In the fleet's account, whose stack must list the helper.

    That is ./scripts/deploy --parameter HelperAccounts=111111111111 --parameter HelperNames=111111111111-audit
    """
    from fedgrass.cloudformation import stack_output
    from fedgrass.silos import pinned_image, split_name

    number, short = split_name(name, "helper")
    account = Account.of(fleet)
    role = stack_output(account.session, fleet, "HelperRoleArn")
    if role is None:
        raise InfrastructureError(
            f"fleet {fleet!r}: its stack lets no helper in; ./scripts/deploy --parameter HelperAccounts={number} "
            f"--parameter HelperNames={name}"
        )
    console = render.console()
    console.print(f"In account {number}, region {account.session.region_name}:", highlight=False)
    console.print(
        f"fedgrass helper deploy {short} --fleet {fleet} --role {role} --image {pinned_image(account)}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def deploy(
    name: NameArgument,
    fleet: FleetOption = DEFAULT_FLEET,
    role: Annotated[str, typer.Option(help="The fleet's HelperRoleArn, as `fedgrass helper invite` says.")] = "",
    image: Annotated[str, typer.Option(help="The image that answers, by its digest, in this region.")] = "",
    min_devices: Annotated[int | None, typer.Option(min=2, help="Sum no set of fewer devices. [default: 2]")] = None,
    known_seconds: Annotated[
        int | None,
        typer.Option(min=0, help="How long a device's key must be known for it to count among these. [default: 0]"),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help='When a job starts by itself, such as "cron(50 1 * * ? *)"; empty for never.')
    ] = None,
    stay_seconds: Annotated[
        int | None, typer.Option(min=60, help="A job ends when nothing was asked for so long. [default: 900]")
    ] = None,
    instance_type: Annotated[str | None, typer.Option(help="Machine of the job. [default: ml.t3.medium]")] = None,
) -> None:
    """Deploy a helper to this account, or bring it up to date; a new one starts a job, which makes its key.

    What it keeps (the key, and what it answered) is in a table of this account's; the fleet's account gets at nothing here.
    Running it again changes only what is given. `fedgrass helper destroy` undoes it.
    """
    stack = _stack(name)
    given = {
        "Image": image or None,
        "MinDevices": min_devices,
        "KnownSeconds": known_seconds,
        "Schedule": schedule,
        "StaySeconds": stay_seconds,
        "InstanceType": instance_type,
    }
    if not role:
        raise ConfigurationError("--role: which of the fleet's roles the helper assumes; see `fedgrass helper invite`")
    new = stack.deploy(fleet, role, {key: str(value) for key, value in given.items() if value is not None})
    console = render.console()
    console.print(f"Helper [bold]{stack.output('HelperName')}[/] is deployed: stack {stack.stack}.", soft_wrap=True)
    if new:
        stack.start()
        console.print("Its first job has been started, which makes its key; it takes some minutes:", soft_wrap=True)
        console.print(f"  fedgrass helper key {name} --wait 900", highlight=False)
    console.print("To be woken when the fleet's aggregator begins, tell the fleet's operator this bus:", soft_wrap=True)
    console.print(
        f"  ./scripts/deploy --parameter HelperBuses={stack.output('BusArn')}", soft_wrap=True, highlight=False
    )


@app.command()
def key(
    name: NameArgument,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for the job that makes it.")] = 0,
) -> None:
    """Show the helper's public key, as `fedgrass fleet helpers` takes it.

    Tell it to the fleet's operator, and to devices' owners (secureHelpers), by a way that the fleet's account has no hand in:
    whoever can change it on its way can be this helper.
    """
    stack = _stack(name)
    found = stack.key(wait_seconds=wait)
    if found is None:
        raise InfrastructureError(
            f"helper {name!r}: no job has made its key yet; see `fedgrass helper status {name}`, and --wait, or start one with "
            f"`fedgrass helper start {name}`"
        )
    render.console().print(f"{stack.output('HelperName')}={found}", soft_wrap=True, highlight=False)


@app.command()
def start(name: NameArgument) -> None:
    """Start a job now, which answers until nothing is asked any more. Where two run already, none is started."""
    _stack(name).start()
    render.console().print(f"A job is being started; see `fedgrass helper status {name}`.")


@app.command()
def status(
    name: NameArgument,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Number of jobs to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Show the helper's last jobs, and what each said at its end."""
    jobs = list(_stack(name).jobs(limit))
    if as_json:
        render.print_json(vars(job) for job in jobs)
        return
    shown = Table("job", "started", "status", "said")
    for job in jobs:
        shown.add_row(job.name, f"{job.started:%Y-%m-%d %H:%M:%S}", job.status, escape(job.said))
    render.console().print(shown)


@app.command()
def stop(name: NameArgument) -> None:
    """Stop the helper's running jobs; what they have answered stays. Safe to repeat: the next one goes on."""
    stopped = _stack(name).stop()
    for job in stopped:
        render.console().print(f"job {job} is being stopped.", soft_wrap=True, highlight=False)
    if not stopped:
        render.console().print(f"helper {name} has no job to stop.")


@app.command()
def destroy(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the helper from this account, with its key and what it has answered. Safe to repeat.

    Boxes that were sealed for the key open no more, of past rounds either. The fleet pins another helper in its place
    (`fedgrass fleet helpers`), before it goes: rounds without enough helpers end as helpers_missing.
    """
    stack = _stack(name)
    if not yes:
        typer.confirm(f"Delete stack {stack.stack}, and the helper's key for good?", abort=True)
    gone = stack.destroy()
    render.console().print(f"helper {name} is removed." if gone else f"helper {name}: there is none.")
