"""``fedgrass simulate``: the command line of simulations."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgrass.cli.groups import grouped
from fedgrass.errors import ConfigurationError
from fedgrass.simulation.options import INTERRUPTED, DataOptions, FleetOptions, TrainingOptions, options_of
from fedgrass.simulation.sweep_command import comparison_table, sweep

if TYPE_CHECKING:
    from rich.table import Table

    from fedgrass.protocol.gain import ByDevice
    from fedgrass.simulation.group_report import GroupsReport
    from fedgrass.simulation.records import SimulatedRound, SimulationReport

app = typer.Typer(invoke_without_command=True, help="Try a federation on virtual devices; several runs in one chart.")
app.command()(sweep)


@dataclass(frozen=True)
class RunOptions:
    """How the simulation is run, and where its results go."""

    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same models, to the byte.")] = 0
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that train.", show_default="one for each processor")
    ] = None
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Train on the machines of a Ray cluster: auto for the one that this machine belongs to; or sagemaker, on each "
            "instance of a Processing job.",
        ),
    ] = ""
    output: Annotated[Path, typer.Option(help="Folder of the report and the model.", file_okay=False)] = Path(
        "simulation-report"
    )
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --output holds.")] = False


@dataclass(frozen=True)
class GroupOptions:
    """Which devices have models of their own."""

    groups: Annotated[
        str, typer.Option(metavar="tag:NAME", help="A model for the devices of each value of a tag of the data.")
    ] = ""
    clusters: Annotated[
        int,
        typer.Option(
            min=0,
            help="So many models: each device takes the one that fits its examples best (IFCA).",
            show_default=False,
        ),
    ] = 0

    @property
    def wanted(self) -> str:
        """As `fedgrass.simulation.settings.Simulation.groups` has it."""
        if self.groups and self.clusters:
            raise ConfigurationError("--groups, --clusters: groups are by a tag, or devices choose; give one of them")
        return f"clusters:{self.clusters}" if self.clusters else self.groups


@app.callback()
@grouped
def simulate(
    context: typer.Context,
    data: DataOptions,
    fleet: FleetOptions,
    training: TrainingOptions,
    groups: GroupOptions,
    run: RunOptions,
) -> None:
    """Simulate federated rounds on virtual devices.

    Training, codecs, checks, strategies and the gate are those of real fleets; transport and clock are simulated. Writes
    index.html, chart.png, report.json, rounds.csv, every round's report (rounds.jsonl) and the model that came of it.
    Ctrl-C keeps the rounds that are done. With --groups or --clusters each group's are in a folder below groups/.
    """
    if context.invoked_subcommand is not None:
        return None
    # Imported here: `fedgrass --help` must not wait for NumPy and an engine.
    from fedgrass.simulation.run import simulate

    # SIGTERM too leaves the rounds that are done: a batch system ends jobs with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = {**options_of(data, fleet, training, run.seed), "workers": run.workers}
    if groups.wanted:
        return _simulate_groups(groups.wanted, options, run)
    with _Live(fleet.rounds) as live:
        try:
            report = simulate(run.output, resume=run.resume, ray=run.ray, done=live.done, **options)
        except KeyboardInterrupt:
            live.say(f"interrupted after round {live.round}; go on with the same command and --resume")
            raise typer.Exit(INTERRUPTED) from None
    return _show(report, run.output)


def _simulate_groups(groups: str, options: dict[str, Any], run: RunOptions) -> None:
    from fedgrass.cli import render
    from fedgrass.simulation.grouped_run import simulate_groups

    if run.ray:
        raise ConfigurationError("--ray: a simulation with groups runs on one machine; give --workers")
    with _Live(options["rounds"]) as live:
        try:
            report = simulate_groups(run.output, resume=run.resume, done=live.groups_done, groups=groups, **options)
        except KeyboardInterrupt:
            live.say(f"interrupted after round {live.round}; go on with the same command and --resume")
            raise typer.Exit(INTERRUPTED) from None
    console = render.console()
    console.print(groups_table(report))
    console.print(f"Report: [bold]{run.output / 'index.html'}[/]; models: {run.output / 'groups'}", highlight=False)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of simulations.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option(help="Folder of the comparison.", file_okay=False)] = Path(
        "simulation-comparison"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a table.")] = False,
) -> None:
    """Put several simulations into one chart and one table."""
    from fedgrass.cli import render
    from fedgrass.simulation import report
    from fedgrass.simulation.store import open_report

    names = _names(folders)
    found = report.compare({name: open_report(folder) for name, folder in names.items()}, output)
    if as_json:
        render.print_json({"run": name, **run.model_dump(mode="json")} for name, run in found.runs.items())
        return
    console = render.console()
    console.print(comparison_table(found))
    console.print(f"Report: [bold]{output / 'index.html'}[/]", highlight=False)


@dataclass(frozen=True)
class ProfileOptions:
    """Whose profile is made, and where it goes."""

    output: Annotated[Path, typer.Option(help="File of the profile.", dir_okay=False)] = Path("profile.json")
    bundle: Annotated[
        Path | None,
        typer.Option(help="The model whose inputs are described.", show_default="the digits example"),
    ] = None
    devices: Annotated[int, typer.Option(min=1, help="Virtual devices.")] = 1000
    seed: Annotated[int, typer.Option(min=0, help="Of the division of the data.")] = 0
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=JSON",
            help="A setting of statistics, as bins=128, or of privacy, as privacy.mode=central; repeatable.",
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="The profile as JSON instead of a table.")] = False


@app.command()
@grouped
def profile(data: DataOptions, given: ProfileOptions) -> None:
    """Measure what virtual devices have, and combine it to a profile, as `fedgrass round start --task statistics` does."""
    from rich.console import Console
    from rich.progress import track

    from fedgrass.cli import profiles, render
    from fedgrass.cli.rounds import merge
    from fedgrass.simulation.profiling import simulate_profile

    wanted = merge(given.setting or [])
    privacy = wanted.pop("privacy", None)
    rounds = 2 - ("low" in wanted)
    progress = iter(
        track(range(given.devices * rounds), "measuring", console=Console(stderr=True), disable=given.as_json)
    )
    found = simulate_profile(
        given.bundle,
        given.output,
        statistics=wanted,
        privacy=privacy,
        done=lambda _: next(progress, None),
        devices=given.devices,
        seed=given.seed,
        **asdict(data),
    )
    next(progress, None)
    if given.as_json:
        render.print_json([found.model_dump(mode="json", by_alias=True)])
        return
    console = render.console()
    console.print(profiles.summary(found), highlight=False, soft_wrap=True)
    console.print(profiles.tables(found))
    console.print(f"wrote {given.output}", highlight=False)


class _Live:
    """The progress on the terminal."""

    def __init__(self, rounds: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("starting", total=rounds)
        self.round = 0

    def __enter__(self) -> _Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self, simulated: SimulatedRound) -> None:
        """Show a round's end."""
        from fedgrass.cli import render

        self.round = simulated.report.round
        found = simulated.evaluation
        figure = f"loss {found.loss:.4f}" if found.accuracy is None else f"accuracy {render.percent(found.accuracy)}"
        refused = len(simulated.report.quarantined)
        text = f"{figure}, {len(simulated.report.updates)} used" + (f", {refused} refused" if refused else "")
        self._progress.update(self._task, description=text, completed=self.round)

    def groups_done(self, simulated: dict[str, SimulatedRound]) -> None:
        """Show the end of a round of several models."""
        self.round = max(one.report.round for one in simulated.values())
        text = ", ".join(f"{name} {len(one.report.updates)}" for name, one in simulated.items())
        self._progress.update(self._task, description=f"used: {text}", completed=self.round)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False)


def _show(report: SimulationReport, output: Path) -> None:
    from fedgrass.cli import render

    final, first, timing = report.final, report.first, report.timing
    figures = f"loss {first.loss:.4f} → {final.loss:.4f}"
    if final.accuracy is not None:
        figures = f"accuracy {render.percent(first.accuracy)} → [bold]{render.percent(final.accuracy)}[/], {figures}"
    if final.metrics:
        figures += f"; {render.figures_line(final.metrics)}"
    console = render.console()
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    console.print(f"{report.rounds} rounds ({outcomes}): {figures}", highlight=False)
    if report.ended:
        console.print(f"No more rounds: {report.ended}.", highlight=False)
    console.print(
        f"{timing.device_rounds:,} device-rounds in {timing.seconds:.1f} s ({timing.device_rounds_per_second:,.0f} a second) "
        f"on {timing.workers} processes, after {timing.start_seconds:.1f} s; "
        f"{report.simulated_seconds / 3600:.1f} h by the simulated clock",
        highlight=False,
    )
    console.print(f"Report: [bold]{output / 'index.html'}[/]; model: {output / 'model'}", highlight=False)


def groups_table(report: GroupsReport) -> Table:
    """Return the groups as a table: how many devices, and what its model is to them."""
    from rich.table import Table

    table = Table("group", "devices", f"{report.figure} by device, median", "worst tenth", "model")
    for name, group in report.groups.items():
        table.add_row(name, str(group.devices), *_of_devices(group.by_device), group.report.final_version)
    total = sum(group.devices for group in report.groups.values())
    table.add_section()
    table.add_row("all", str(total), *_of_devices(report.by_device), "")
    return table


def _of_devices(found: ByDevice | None) -> tuple[str, str]:
    return ("–", "–") if found is None else (f"{found.median:.4f}", f"{found.worst_tenth:.4f}")


def _names(folders: list[Path]) -> dict[str, Path]:
    """Return the folders by the shortest names that tell them apart."""
    short = {folder.name: folder for folder in folders}
    return short if len(short) == len(folders) else {str(folder): folder for folder in folders}
