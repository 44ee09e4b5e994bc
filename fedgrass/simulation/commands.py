"""``fedgrass simulate``: the command line of simulations."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgrass.cli.groups import grouped
from fedgrass.cli.rounds import parse_setting
from fedgrass.parts import ATTACKS, ENGINES, LOADERS

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings
    from fedgrass.simulation.records import SimulatedRound, SimulationReport

app = typer.Typer(invoke_without_command=True, help="Try a federation on virtual devices; several runs in one chart.")

# 128 + SIGINT, as shells have it.
_INTERRUPTED = 130


@dataclass(frozen=True)
class DataOptions:
    """The examples, and how they are spread over devices."""

    data: Annotated[
        str,
        typer.Option(
            help="A file (.npz, .csv, .jsonl, .db, .parquet), a folder of x.npy and y.npy, or one with a folder of images, "
            "sounds or texts for each class.",
            show_default="scikit-learn's digits",
        ),
    ] = ""
    loader: Annotated[
        str,
        typer.Option(help=f"One of {LOADERS.choices()}, as devices have it.", show_default="by the file"),
    ] = ""
    label: Annotated[str, typer.Option(help="The label's column in a .csv file.", show_default="the last")] = ""
    partition: Annotated[str, typer.Option(help="iid, dirichlet:ALPHA, or shards:LABELS for each device.")] = (
        "dirichlet:0.3"
    )
    examples: Annotated[
        int, typer.Option(min=0, help="Examples of each device, drawn with repetitions; 0 divides the data instead.")
    ] = 40
    held_out: Annotated[float, typer.Option(help="Share of the data that judges the models.")] = 0.2
    evaluation: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Examples that judge the models, as --data names some; then none of the data are held out.",
        ),
    ] = ""


@dataclass(frozen=True)
class FleetOptions:
    """The devices, and which of them answer in time."""

    devices: Annotated[int, typer.Option(min=1, help="Virtual devices.")] = 1000
    cohort: Annotated[int, typer.Option(min=1, help="How many are asked in each round.")] = 50
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to simulate.")] = 20
    dropout: Annotated[float, typer.Option(help="Share of the asked that never answers.")] = 0.0
    stragglers: Annotated[
        str,
        typer.Option(
            metavar="SHARE:FACTOR",
            help="Such as 0.2:5x: a fifth of the devices is five times as slow; 0.5:10x:lognormal: half, up to ten times.",
        ),
    ] = ""
    deadline: Annotated[
        int, typer.Option(min=1, help="Simulated seconds until a round ends; a typical device needs 60.")
    ] = 180
    quorum: Annotated[float, typer.Option(help="Share of the asked whose updates end the round.")] = 1.0
    attack: Annotated[
        str,
        typer.Option(
            metavar="KIND:SHARE[:FACTOR]",
            help=f"By a share of the devices: {ATTACKS.choices()}; docs/how-to/attackers.md.",
        ),
    ] = ""


@dataclass(frozen=True)
class TrainingOptions:
    """The model, how devices train it, and how their updates are combined."""

    bundle: Annotated[
        Path | None, typer.Option(help="The model bundle to start from.", show_default="the digits example")
    ] = None
    engine: Annotated[str, typer.Option(help=f"As devices have it: {ENGINES.choices()}.")] = "litert"
    builder: Annotated[str, typer.Option(help="module:function that builds the model, for those engines.")] = ""
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training on each device, in a round.")] = 5
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Step size of the training on each device.", show_default="the model's own, by its optimizer"
        ),
    ] = None
    codec: Annotated[str, typer.Option(help="Of updates: float32, int8, topk:0.05+int8+zstd, …; docs/codecs.md.")] = (
        "float32"
    )
    strategy: Annotated[
        str,
        typer.Option(metavar="NAME[:OPTION=VALUE,…]", help="Such as fedadam:learning_rate=0.05; docs/strategies.md."),
    ] = "fedavg"
    secure: Annotated[
        str,
        typer.Option(
            metavar="HELPERS:COLLUDE[:BITS]",
            help="Secure aggregation, such as 3:1 or 5:2:16; docs/secure-aggregation.md.",
        ),
    ] = ""
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=JSON", help="Any other setting of a fleet, as update.clip_norm=1; repeatable."
        ),
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """How the simulation is run, and where its results go."""

    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same models, to the byte.")] = 0
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that train.", show_default="one for each processor")
    ] = None
    host: Annotated[
        str, typer.Option(metavar="INDEX/COUNT", help="Which of several machines this is, such as 0/2; or sagemaker.")
    ] = ""
    exchange: Annotated[
        str, typer.Option(help="Where the machines meet: a folder that all see, or s3://BUCKET/PREFIX.")
    ] = ""
    output: Annotated[Path, typer.Option(help="Folder of the report and the model.", file_okay=False)] = Path(
        "simulation-report"
    )
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --output holds.")] = False


@app.callback()
@grouped
def simulate(
    context: typer.Context, data: DataOptions, fleet: FleetOptions, training: TrainingOptions, run: RunOptions
) -> None:
    """Simulate federated rounds on virtual devices.

    Training, codecs, checks, strategies and the gate are those of real fleets; transport and clock are simulated. Writes
    index.html, chart.png, report.json, rounds.csv, every round's report (rounds.jsonl) and the model that came of it.
    Ctrl-C keeps the rounds that are done.
    """
    if context.invoked_subcommand is not None:
        return None
    # Imported here: `fedgrass --help` must not wait for NumPy and an engine.
    from fedgrass.simulation.exchange import position
    from fedgrass.simulation.run import run_secondary, simulate

    # SIGTERM too leaves the rounds that are done: a batch system ends jobs with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    index, hosts = position(run.host)
    options = {
        **asdict(data),
        **_of_the_fleet(fleet),
        **_of_training(training),
        "seed": run.seed,
        "workers": run.workers,
    }
    # Settings are whole before anything starts: a misspelt one costs no start of processes.
    options["fleet"] = _settings(fleet, training, run.seed)
    if index:
        return run_secondary(index, hosts, run.exchange, **options)
    with _Live(fleet.rounds) as live:
        try:
            report = simulate(
                run.output, resume=run.resume, hosts=hosts, exchange=run.exchange, done=live.done, **options
            )
        except KeyboardInterrupt:
            live.say(f"interrupted after round {live.round}; go on with the same command and --resume")
            raise typer.Exit(_INTERRUPTED) from None
    return _show(report, run.output)


def _of_the_fleet(given: FleetOptions) -> dict[str, Any]:
    names = ("devices", "cohort", "rounds", "dropout", "stragglers", "attack")
    return {name: getattr(given, name) for name in names}


def _of_training(given: TrainingOptions) -> dict[str, Any]:
    return {name: getattr(given, name) for name in ("bundle", "engine", "builder")}


def _settings(fleet: FleetOptions, training: TrainingOptions, seed: int) -> FleetSettings:
    """Return a fleet's settings as the options have them; ``--set`` comes last, and so has the last word."""
    from fedgrass.protocol.settings import FleetSettings, laid_over
    from fedgrass.simulation.settings import parse_strategy

    given: dict[str, Any] = {
        "deadline_seconds": fleet.deadline,
        "quorum": fleet.quorum,
        "fit": {"epochs": training.epochs, "learning_rate": training.learning_rate},
        "update": {"codec": training.codec},
        "strategy": parse_strategy(training.strategy),
    }
    if training.secure:
        from fedgrass.simulation.helpers import parse_secure

        given["secure"] = parse_secure(training.secure, seed)
    for text in training.setting or ():
        given = laid_over(given, parse_setting(text))
    # Judged as a whole: what one setting needs another may give.
    return FleetSettings().overridden(given)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of simulations.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option(help="Folder of the comparison.", file_okay=False)] = Path(
        "simulation-comparison"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a table.")] = False,
) -> None:
    """Put several simulations into one chart and one table."""
    from rich.table import Table

    from fedgrass.cli import render
    from fedgrass.simulation import report
    from fedgrass.simulation.store import open_report

    names = _names(folders)
    found = report.compare({name: open_report(folder) for name, folder in names.items()}, output)
    if as_json:
        render.print_json({"run": name, **run.model_dump(mode="json")} for name, run in found.runs.items())
        return
    table = Table("run", "strategy", "codec", "attack", "rounds", "accuracy", "loss", "updates")
    for name, run in found.runs.items():
        fleet = run.simulation.fleet
        table.add_row(
            name,
            fleet.strategy.name,
            fleet.update.codec,
            run.simulation.attack or "–",
            str(run.rounds),
            render.percent(run.final.accuracy),
            f"{run.final.loss:.4f}",
            render.size(run.bytes_read),
        )
    console = render.console()
    console.print(table)
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
        typer.Option("--set", metavar="NAME=JSON", help="A setting of statistics, as bins=128; repeatable."),
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
    rounds = 2 - ("low" in wanted)
    progress = iter(
        track(range(given.devices * rounds), "measuring", console=Console(stderr=True), disable=given.as_json)
    )
    found = simulate_profile(
        given.bundle,
        given.output,
        statistics=wanted,
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
    console.print(
        f"{timing.device_rounds:,} device-rounds in {timing.seconds:.1f} s ({timing.device_rounds_per_second:,.0f} a second) "
        f"on {timing.workers} processes, after {timing.start_seconds:.1f} s; "
        f"{report.simulated_seconds / 3600:.1f} h by the simulated clock",
        highlight=False,
    )
    console.print(f"Report: [bold]{output / 'index.html'}[/]; model: {output / 'model'}", highlight=False)


def _names(folders: list[Path]) -> dict[str, Path]:
    """Return the folders by the shortest names that tell them apart."""
    short = {folder.name: folder for folder in folders}
    return short if len(short) == len(folders) else {str(folder): folder for folder in folders}
