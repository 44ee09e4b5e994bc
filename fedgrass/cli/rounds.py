"""``fedgrass round``: start, watch, list, aggregate, cancel and resume rounds."""

from __future__ import annotations

import json
import time
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli import render
from fedgrass.cli.account import FleetOption, JsonOption
from fedgrass.cli.lazy import LazyGroup
from fedgrass.errors import ConfigurationError, RoundRefusedError
from fedgrass.failures import in_words, last_failure, lost_events, require_begun
from fedgrass.protocol import tables
from fedgrass.protocol.participations import participations
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.waiting import waiting_for
from fedgrass.rounds_api import (
    Started,
    aggregate_now,
    cancel_round,
    is_running,
    needs_bounds,
    resume_run,
    start_rounds,
)

app = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Start, watch, list, aggregate, cancel and resume rounds.")

_REFRESH_SECONDS = 1.0
_SECRET = {"collect_token", "job_token", "rollout_token"}


def parse_setting(text: str) -> dict[str, Any]:
    """Read ``fit.epochs=3`` as ``{"fit": {"epochs": 3}}``; what is not JSON is taken as text."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigurationError(f"--set {text!r}: expected name=value (NAME=JSON), for example fit.epochs=3")
    try:
        result: Any = json.loads(value)
    except ValueError:
        result = value
    # From the innermost name outwards.
    for part in reversed(path.split(".")):
        result = {part: result}
    return dict(result)


def merge(settings: list[str]) -> dict[str, Any]:
    """Join several ``name=value`` into one document."""
    merged: dict[str, Any] = {}
    for text in settings:
        below, addition = merged, parse_setting(text)
        while True:
            [(key, value)] = addition.items()
            # Only two objects are joined; anything else is replaced, so the last word counts.
            if not isinstance(value, dict) or not isinstance(below.get(key), dict):
                below[key] = value
                break
            below, addition = below[key], value
    return merged


class Task(str, Enum):
    """What a round asks of its devices."""

    FIT = "fit"
    EVALUATE = "evaluate"
    STATISTICS = "statistics"


@app.command()
def start(
    fleet: FleetOption = DEFAULT_FLEET,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of rounds to run, one after the other; with --set until.target=0.9, until.patience=5 or until.hours=8, "
            "at most so many (docs/how-to/long-runs.md).",
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="fit: train; evaluate: judge the current model; statistics: make a profile of the fleet's data, by two rounds "
            "if there is none yet: the second's histograms have the first's bounds.",
            show_default="the fleet's setting",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting for this start, such as fit.epochs=3.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Watch until the last round is closed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a round with the fleet's settings, as the console's button does."""
    account = Account.of(fleet)
    overrides = merge(setting or [])
    if task is not None:
        overrides["task"] = task.value
    if rounds is not None:
        overrides["rounds"] = rounds
    # A first profile has no bounds for its histograms; the second round takes them from it.
    elif "rounds" not in overrides and needs_bounds(account, overrides):
        overrides["rounds"] = 2
    started = start_rounds(account, overrides)
    _follow(account, started, f"{_plan(started.settings)}", wait=wait, as_json=as_json)


@app.command()
def resume(
    number: Annotated[
        int | None,
        typer.Argument(
            min=1, help="A round of the run that is to go on (default: the last round).", show_default=False
        ),
    ] = None,
    fleet: FleetOption = DEFAULT_FLEET,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of the whole run, those it has had among them.", show_default="as started"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting for the rest of the run, such as until.hours=96."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Watch until the last round is closed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was cancelled or has failed, from its last whole round.

    It has the settings of its start, and its rounds, patience, hours and schedule count on.
    """
    account = Account.of(fleet)
    overrides = merge(setting or [])
    if rounds is not None:
        overrides["rounds"] = rounds
    started = resume_run(account, overrides, number)
    _follow(account, started, f"of a run of {_plan(started.settings)}", wait=wait, as_json=as_json)


def _follow(account: Account, started: Started, plan: str, *, wait: bool, as_json: bool) -> None:
    fleet, console = account.fleet, render.console(quiet=as_json)
    console.print(f"Started: round {started.round} of fleet [bold]{fleet}[/], {plan}.")
    console.print(f"[dim]{started.execution}[/]", soft_wrap=True)
    # A refusal of the opening shows within seconds, and ends this command with its reason.
    if not require_begun(account, started.execution):
        console.print("It has not opened its round yet; see `fedgrass round status`.")
    if wait:
        watch(account, started.execution, console)
    if as_json and wait:
        ended = tables.recent_rounds(account.rounds_table, fleet, started.settings.rounds)
        # Oldest first, as they ran.
        render.print_json(record.model_dump(mode="json", exclude=_SECRET) for record in reversed(ended))
    elif as_json:
        render.print_json([{"round": started.round, "execution": started.execution}])


def _plan(settings: FleetSettings) -> str:
    count = "1 round" if settings.rounds == 1 else f"{settings.rounds} rounds"
    if settings.may_end_early and settings.rounds > 1:
        count = f"at most {count}"
    if settings.task != "fit":
        return f"{count} of task {settings.task}"
    return f"{count} of {settings.fit.epochs} local epochs, strategy {settings.strategy.name}"


def watch(account: Account, execution: str, console: Console) -> None:
    """Show the open round until the run ends, whatever its number of executions; Ctrl-C stops watching, not the round.

    Parameters
    ----------
    account
        The fleet's account.
    execution
        ARN of the run's first execution.
    console
        Where it is shown.
    """
    try:
        with Live(console=console, refresh_per_second=4) as live:
            # The execution ends the watching, not the round: several rounds may follow one another.
            output = _watched(account, execution, live)
            while following := output.get("next"):
                execution = following
                time.sleep(_REFRESH_SECONDS)  # Step Functions knows it for certain then
                output = _watched(account, execution, live)
    except KeyboardInterrupt:
        console.print("The round goes on; see `fedgrass round status`.")
        raise typer.Exit from None
    described = account.step_functions.describe_execution(executionArn=execution)
    console.print(render.rounds_table(tables.recent_rounds(account.rounds_table, account.fleet)))
    if ended := output.get("ended"):
        console.print(f"No more rounds: {ended}.", highlight=False)
    if described["status"] != "SUCCEEDED":
        raise RoundRefusedError(f"the execution ended as {described['status']}: {in_words(described.get('cause'))}")


def _watched(account: Account, execution: str, live: Live) -> dict[str, Any]:
    """Show the open round until the execution ends, and return its output; empty if it has none."""
    # No `poll`: each turn shows the round.
    while is_running(account, execution):
        recent = tables.recent_rounds(account.rounds_table, account.fleet, limit=1)
        if recent:
            live.update(render.round_line(recent[0]))
        time.sleep(_REFRESH_SECONDS)
    described = account.step_functions.describe_execution(executionArn=execution)
    return dict(json.loads(described.get("output") or "{}"))


@app.command()
def status(
    number: Annotated[int | None, typer.Argument(help="The round (default: the last one).")] = None,
    fleet: FleetOption = DEFAULT_FLEET,
    as_json: JsonOption = False,
) -> None:
    """Show one round: its phase, devices and result; for the last one, also what has failed since."""
    account = Account.of(fleet)
    console = render.console()
    last = number is None
    if number is None:
        number = tables.load_state(account.rounds_table, fleet).last
    if as_json:
        _print_status(account, number, last=last)
        return
    if number == 0:
        console.print(f"Fleet [bold]{fleet}[/] has had no round yet: `fedgrass round start`.")
    else:
        record = tables.load_round(account.rounds_table, fleet, number)
        console.print(render.round_panel(record))
        console.print(render.participants_table(list(participations(account.rounds_table, fleet, number)), record))
        if record.phase == "collecting":
            for one in waiting_for(account.rounds_table, account.devices_table, record):
                console.print(render.waiting_line(one, time.time() * 1000), soft_wrap=True)
    if last:
        _tell_failures(account, console)


def _print_status(account: Account, number: int, *, last: bool) -> None:
    record = tables.load_round(account.rounds_table, account.fleet, number) if number else None
    parts = participations(account.rounds_table, account.fleet, number) if record else ()
    failed = last_failure(account) if last else None
    found: dict[str, Any] = {
        "round": record and record.model_dump(mode="json", exclude=_SECRET),
        "devices": [part.model_dump(mode="json") for part in parts],
        "waiting": [
            {"thing": one.thing, "gone": one.gone, "reason": one.heartbeat.reason if one.heartbeat else None}
            for one in (waiting_for(account.rounds_table, account.devices_table, record) if record else ())
            if record is not None and record.phase == "collecting"
        ],
        "last_failure": failed and {"status": failed.status, "reason": failed.reason},
        "lost_events": [vars(event) for event in lost_events(account)] if last else [],
    }
    render.print_json([found])


def _tell_failures(account: Account, console: Console) -> None:
    failed = last_failure(account)
    if failed is not None:
        console.print(f"[red]The last execution ended as {failed.status}[/]: {escape(failed.reason)}", soft_wrap=True)
    lost = lost_events(account)
    if lost:
        console.print(
            f"[red]{len(lost)} events that functions failed at[/], kept for 14 days (docs/operations.md, events-lost):"
        )
    for event in lost:
        console.print(
            f"  {event.at} {event.function}: {escape(event.error)}\n    {escape(event.event)}", soft_wrap=True
        )


@app.command("list")
def list_rounds(
    fleet: FleetOption = DEFAULT_FLEET,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of rounds to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the last rounds."""
    records = tables.recent_rounds(Account.of(fleet).rounds_table, fleet, limit)
    console = render.console()
    if as_json:
        render.print_json(record.model_dump(mode="json", exclude=_SECRET) for record in records)
    else:
        console.print(render.rounds_table(records))


@app.command()
def aggregate(fleet: FleetOption = DEFAULT_FLEET) -> None:
    """Stop collecting now, and aggregate the updates that have arrived; safe to repeat."""
    record = aggregate_now(Account.of(fleet))
    render.console().print(
        f"Round {record.round} of fleet [bold]{fleet}[/] goes on with {record.contributed} updates; see `fedgrass round status`."
    )


@app.command()
def cancel(
    fleet: FleetOption = DEFAULT_FLEET,
    reason: Annotated[str, typer.Option(help="Reason to keep in the round's record.")] = "cancelled by the operator",
) -> None:
    """Cancel the open round and the run that it is part of; the model stays as it is. `fedgrass round resume` goes on."""
    cancelled = cancel_round(Account.of(fleet), reason)
    render.console().print(
        f"Round {cancelled} of fleet [bold]{fleet}[/] is being cancelled; see `fedgrass round status`."
    )
