"""``fedgrass simulate sweep``: the command line of many simulations."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from fedgrass.cli.groups import grouped
from fedgrass.errors import ConfigurationError
from fedgrass.simulation.options import INTERRUPTED, DataOptions, FleetOptions, TrainingOptions, options_of

if TYPE_CHECKING:
    from rich.table import Table

    from fedgrass.simulation.records import Comparison

G = TypeVar("G", DataOptions, FleetOptions, TrainingOptions)


@dataclass(frozen=True)
class SweepOptions:
    """What differs from run to run, and where the runs go."""

    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A value to try of an option, as strategy=fedprox, or of a fleet's setting, as fit.learning_rate=0.1; "
            "repeatable: every combination of the values is a run.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of every run; or vary it: --vary seed=0 --vary seed=1.")] = 0
    processes: Annotated[
        int | None, typer.Option(min=1, help="Simulations at once.", show_default="one for each processor")
    ] = None
    output: Annotated[Path, typer.Option(help="Folder of the runs and of their comparison.", file_okay=False)] = Path(
        "simulation-sweep"
    )
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per run instead of a table.")] = False


@grouped
def sweep(data: DataOptions, fleet: FleetOptions, training: TrainingOptions, given: SweepOptions) -> None:
    """Simulate every combination of some settings, on all processors, and put them into one chart and one table.

    Each run is a simulation in a folder of its own. Ctrl-C, or a crash, keeps the rounds that are done: the same command goes on,
    and with more values it does what is new.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fedgrass.cli import render
    from fedgrass.simulation.sweep import combinations, sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = combinations(_values(given.vary))
    runs = {name: _options(data, fleet, training, given.seed, one) for name, one in chosen.items()}
    with Progress(console=Console(stderr=True), disable=given.as_json) as progress:
        task = progress.add_task("runs", total=len(runs))

        def done(name: str, failure: str) -> None:
            progress.advance(task)
            if failure:
                progress.console.print(f"{name}: {failure}", highlight=False, markup=False)

        try:
            found, failures = sweep(given.output, runs, processes=given.processes, done=done)
        except KeyboardInterrupt:
            progress.console.print("interrupted; go on with the same command", highlight=False)
            raise typer.Exit(INTERRUPTED) from None
    if given.as_json:
        render.print_json({"run": name, **run.model_dump(mode="json")} for name, run in found.runs.items())
    else:
        console = render.console()
        console.print(comparison_table(found))
        console.print(f"Report: [bold]{given.output / 'index.html'}[/]", highlight=False)
    if failures:
        raise typer.Exit(1)


def _values(texts: list[str] | None) -> dict[str, list[str]]:
    if not texts:
        raise ConfigurationError(
            "sweep: nothing varies; expected --vary NAME=VALUE, such as --vary fit.learning_rate=0.1"
        )
    found: dict[str, list[str]] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise ConfigurationError(f"--vary {text}: expected NAME=VALUE, such as fit.learning_rate=0.1")
        found.setdefault(name, []).append(value)
    return found


def _options(
    data: DataOptions, fleet: FleetOptions, training: TrainingOptions, seed: int, one: Mapping[str, str]
) -> dict[str, Any]:
    """Return the options of one run: an option of `fedgrass simulate` by its name, any other name is a fleet's setting."""
    left = dict(one)
    data, fleet, training = _changed(data, left), _changed(fleet, left), _changed(training, left)
    if "seed" in left:
        seed = _read("seed", int, left.pop("seed"))
    settings = [*(training.setting or ()), *(f"{name}={value}" for name, value in left.items())]
    return options_of(data, fleet, replace(training, setting=settings), seed)


def _changed(group: G, left: dict[str, str]) -> G:
    """Return a group of options with those that vary; they are taken from ``left``."""
    kinds = {name: kind for name, kind in get_type_hints(type(group)).items() if name != "setting"}
    names = {name: name.replace("-", "_") for name in left if name.replace("-", "_") in kinds}
    return replace(group, **{names[name]: _read(name, kinds[names[name]], left.pop(name)) for name in names})


def _read(name: str, kind: Any, text: str) -> Any:
    plain = get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind
    try:
        return plain(text)
    except ValueError:
        raise ConfigurationError(f"--vary {name}={text}: expected {plain.__name__}") from None


def comparison_table(found: Comparison) -> Table:
    """Return several runs as a table."""
    from rich.table import Table

    from fedgrass.cli import render

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
    return table
