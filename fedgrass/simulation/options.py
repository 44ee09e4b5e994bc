"""What ``fedgrass simulate`` and its sweeps are asked: the data, the devices, and how they train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgrass.cli.rounds import parse_setting
from fedgrass.parts import ATTACKS, ENGINES, LOADERS

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


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
    missing: Annotated[
        str,
        typer.Option(
            help="With a table's missing values, as devices have it: refuse, skip, mean (that of the bundle) or a number. "
            "A profile counts them instead."
        ),
    ] = "refuse"
    tag: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="An array beside x and y, or an .npy file, such as each example's site: a device has examples of one value.",
        ),
    ] = ""
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
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds to simulate; at most, with --set until.target=0.9 or until.patience=5.")
    ] = 20
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


def options_of(data: DataOptions, fleet: FleetOptions, training: TrainingOptions, seed: int) -> dict[str, Any]:
    """Return the options of `fedgrass.simulation.run.simulate`."""
    options = {**asdict(data), **_of_the_fleet(fleet), **_of_training(training), "seed": seed}
    # Settings are whole before anything starts: a misspelt one costs no start of processes.
    options["fleet"] = _settings(fleet, training, seed)
    return options


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
