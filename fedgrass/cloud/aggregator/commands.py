"""What the command line offers of this package; plain functions with typer's annotations."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.bundle import Bundle
from fedgrass.cli.account import FleetOption
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.names import RUNTIME
from fedgrass.strategies import STRATEGIES

if TYPE_CHECKING:
    from fedgrass.cloud.aggregator.release import Release


def publish(
    folder: Annotated[Path, typer.Argument(help="The model bundle: a folder with model.json.", exists=True)],
    fleet: FleetOption = DEFAULT_FLEET,
    version: Annotated[
        str | None,
        typer.Option(
            help="Publish it as this version, such as 2.0.0, instead of the bundle's own; the middle number is 0."
        ),
    ] = None,
    builder: Annotated[
        str,
        typer.Option(
            help="module:object in the code that the bundle brings (fedgrass model pack): the fleet's deployment tells the "
            "devices, by the code's digest, that they may run it."
        ),
    ] = "",
) -> None:
    """Publish a model bundle to a fleet: its first model, or a new graph.

    Uploads it, makes it a version of its model component, deploys it if the fleet has a deployment, and makes it the
    base of the next round. Running it again changes nothing.
    """
    from fedgrass.cloud.aggregator.manual_release import fleet_clients
    from fedgrass.cloud.aggregator.release import publish_model, trust_builder

    # A bundle is sealed: to publish it as another version takes a copy with a manifest of its own.
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as place:
        bundle = Bundle.open(folder)
        if version is not None:
            bundle = renamed(bundle, version, Path(place) / "bundle")
        clients = fleet_clients(Account.of(fleet))
        if builder:  # first: a device that has the model and not the setting could not train
            settings, deployment = trust_builder(bundle, clients, builder)
            where = f"deployed by {deployment}" if deployment else "put it into the fleet's first deployment"
            typer.echo(f"configuration of {RUNTIME}, {where}: {json.dumps(settings)}")
        released = publish_model(bundle, clients)
    _tell(released, fleet)


def renamed(bundle: Bundle, version: str, folder: Path) -> Bundle:
    """Copy a bundle as another version.

    Parameters
    ----------
    bundle
        The bundle.
    version
        ``MAJOR.0.PATCH``.
    folder
        Where the copy goes; must not exist.

    Returns
    -------
    Bundle
        The copy, sealed.

    Raises
    ------
    ConfigurationError
        If a round could make that version.
    """
    if not re.fullmatch(r"[0-9]{1,6}\.0\.[0-9]{1,6}", version):
        raise ConfigurationError(
            f"--version {version!r}: expected MAJOR.0.PATCH, such as 2.0.0; the middle number is that of the round that made it"
        )
    folder.mkdir(parents=True)
    for name in bundle.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), folder / name)
    return Bundle.seal(folder, bundle.manifest.model_copy(update={"version": version}))


def release(
    version: Annotated[str, typer.Argument(help="The version that a round made, such as 1.7.0.")],
    fleet: FleetOption = DEFAULT_FLEET,
    canaries: Annotated[
        bool, typer.Option(help="Deploy to the round's canaries first, if it has any, and wait for them.")
    ] = True,
) -> None:
    """Release a model that its round held, or used only as the base of the next round.

    It is released as by a round: to canaries that have not had it yet, to the fleet at the rate of the round's
    settings, and to the model registry. Running it again changes nothing.
    """
    from fedgrass.cloud.aggregator import manual_release

    _tell(manual_release.release(Account.of(fleet), version, canaries=canaries), fleet)


def roll_back(
    version: Annotated[str, typer.Argument(help="A version that the fleet had, such as 1.5.0.")],
    fleet: FleetOption = DEFAULT_FLEET,
) -> None:
    """Roll back to an earlier version: on the devices, and as the base of the next round."""
    from fedgrass.cloud.aggregator import manual_release

    _tell(manual_release.roll_back(Account.of(fleet), version), fleet)


def _tell(released: Release, fleet: str) -> None:
    typer.echo(f"{released.component_arn} is the current model of fleet {fleet}")
    if released.deployment_id is None:
        typer.echo(f"{released.target_arn} has no deployment yet: devices get the model with their first one")
    else:
        typer.echo(f"deployed by {released.deployment_id}")


def aggregate(
    base: Annotated[
        Path,
        typer.Option(help="The model bundle that the updates are differences from.", exists=True, file_okay=False),
    ],
    updates: Annotated[
        Path,
        typer.Option(help="A folder of THING.safetensors or THING/update.safetensors.", exists=True, file_okay=False),
    ],
    output: Annotated[
        Path, typer.Option(help="Where the new bundle is written: another folder than the base.", file_okay=False)
    ],
    strategy: Annotated[str, typer.Option(help=f"One of {STRATEGIES.choices()}.")] = "fedavg",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the strategy as NAME=JSON, such as learning_rate=0.5; may be repeated.",
            metavar="NAME=JSON",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="An .npz of x and y, your own examples, for --strategy trust.", exists=True, dir_okay=False),
    ] = None,
    max_norm: Annotated[
        float, typer.Option(min=0, help="Refuse updates with a larger L2 norm; 0 sets no bound.")
    ] = 0.0,
    max_norm_over_median: Annotated[
        float,
        typer.Option(min=0, help="Refuse updates longer than this multiple of their median norm; 0 sets no bound."),
    ] = 0.0,
    clip_norm_over_median: Annotated[
        float,
        typer.Option(
            min=0,
            help="Scale longer updates down to this multiple of their median norm; 0 sets no bound. A strategy's own "
            "clip takes its place.",
        ),
    ] = Checks().clip_norm_over_median,
    max_examples_over_median: Annotated[
        float,
        typer.Option(min=0, help="Cap example counts at this multiple of their median; 0 sets no bound."),
    ] = Checks().max_examples_over_median,
) -> None:
    """Aggregate a folder of updates without AWS: the same checks, the same strategies, the same bytes.

    A server optimizer's state is read from the base's folder and written beside the new model, so that rounds can follow one
    another.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from fedgrass.cloud.aggregator.offline import aggregate_folder
    from fedgrass.cloud.aggregator.sources import Folder
    from fedgrass.strategies import strategy_named

    chosen = strategy_named(strategy, **dict(map(_parsed, option or ())))
    found = Folder(updates).list()
    if not found:
        raise DataError(f"{updates}: holds no update; expected THING.safetensors or THING/update.safetensors")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # On standard error, and only on a terminal: standard output is for scripts.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{len(found)} updates", total=sum(reference.bytes for reference in found))
        result = aggregate_folder(
            base,
            updates,
            output,
            chosen,
            evaluation=evaluation,
            checks=Checks(
                max_norm=max_norm,
                max_norm_over_median=max_norm_over_median,
                clip_norm_over_median=clip_norm_over_median,
                max_examples_over_median=max_examples_over_median,
            ),
            progress=lambda done: bar.advance(task, done),
        )
    # Refusals first: where nothing was written, they are why.
    for entry in result.quarantined:
        typer.echo(f"refused {entry.key}: {entry.reason}: {entry.detail}", err=True)
    if result.problem:
        raise DataError(f"{updates}: {result.problem}; nothing was written")
    if result.parameters is None:
        raise DataError(f"{updates}: no good update among {len(result.quarantined)}; nothing was written")
    typer.echo(f"{len(result.updates)} updates, {len(result.quarantined)} refused; the new model is in {output}")


def _parsed(option: str) -> tuple[str, object]:
    name, _, value = option.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise ConfigurationError(f"--option {option!r}: expected NAME=JSON, such as learning_rate=0.5") from error
