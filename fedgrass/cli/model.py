"""``fedgrass model``: look at model bundles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgrass.cli import render
from fedgrass.cli.account import JsonOption
from fedgrass.cli.lazy import LazyGroup
from fedgrass.parts import ENGINES, LOADERS

if TYPE_CHECKING:
    from fedgrass.bundle import Head

app = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Look at model bundles, and publish them.")


def _told(head: Head, *, named: bool) -> str:
    label = f"{head.y.dtype}{list(head.y.shape)}, {len(head.class_names)} classes"
    return f"{head.name}: {label}, loss weighs {head.weight:g}" if named else label


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A model bundle's folder.", exists=True, file_okay=False)],
    as_json: JsonOption = False,
) -> None:
    """Check a model bundle and show what it holds."""
    import numpy as np
    from rich.table import Table

    from fedgrass.bundle import Bundle

    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest
    if as_json:
        parameters = [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in bundle.parameters().items()
        ]
        render.print_json([{**manifest.model_dump(mode="json"), "parameters": parameters}])
        return
    console = render.console()
    console.print(f"[bold]{manifest.name}[/] {manifest.version}: every file matches its digest")
    facts = Table(show_header=False, box=None)
    facts.add_row("input", f"{manifest.x.dtype}{list(manifest.x.shape)}, batches of {manifest.batch_size}")
    # Only a model of several inputs lists its parts: together they are the one row above.
    for part in manifest.inputs:
        facts.add_row(f"  {part.name}", f"{part.dtype}{list(part.shape)}")
    for head in manifest.heads:
        facts.add_row("output" if manifest.outputs else "label", _told(head, named=bool(manifest.outputs)))
        facts.add_row("  loss" if manifest.outputs else "loss", head.loss)
    facts.add_row("optimizer", manifest.optimizer.name)
    facts.add_row("trainable", f"{manifest.parameter_count:,} parameters")
    if manifest.local_parameters:
        count = sum(parameter.size for parameter in manifest.local_parameters)
        facts.add_row("local", f"{count:,} of them, which each device keeps for itself")
    if manifest.fixed:
        facts.add_row("fixed", f"{', '.join(manifest.fixed)}: set by fedgrass model adapt")
    console.print(facts)
    files = Table("file", "bytes", "sha256", title="Files", title_justify="left")
    for name, description in manifest.files.items():
        files.add_row(name, f"{description.bytes:,}", description.sha256[:16])
    console.print(files)
    local = {parameter.name for parameter in manifest.local_parameters}
    listing = Table("parameter", "shape", "dtype", "mean", "deviation", title="Parameters", title_justify="left")
    for name, array in bundle.parameters().items():
        mean, deviation = (f"{value:.4g}" for value in (np.mean(array), np.std(array)))
        listing.add_row(
            f"{name} (local)" if name in local else name,
            "×".join(map(str, array.shape)),
            str(array.dtype),
            mean,
            deviation,
        )
    console.print(listing)


EngineOption = Annotated[
    str, typer.Option(help=f"Engine, as configured on devices: {ENGINES.choices()}.", show_default="the bundle's")
]
BuilderOption = Annotated[
    str, typer.Option(help="module:function that builds the model, for engines other than litert.")
]
Folder = Annotated[Path, typer.Argument(help="A model bundle's folder.", exists=True, file_okay=False)]


@app.command()
def evaluate(
    folder: Folder,
    data: Annotated[Path, typer.Argument(help="The examples, such as an .npz of x and y.", exists=True)],
    loader: Annotated[str, typer.Option(help=f"How to read them: {LOADERS.choices()}.")] = "npz",
    engine: EngineOption = "",
    builder: BuilderOption = "",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on your own examples, with its own engine.

    Of an anomaly detector the .npz may say in `anomaly` (0 or 1) which examples are none of the normal ones, for an AUC.
    """
    from fedgrass.bundle import Bundle
    from fedgrass.data.evaluation_set import read_evaluation_set
    from fedgrass.training_api import evaluate as evaluated
    from fedgrass.training_api import load_data

    _find_modules_here()
    bundle = Bundle.open(folder)
    # No share is held back: all examples are for judging.
    marked = loader == "npz" and bundle.manifest.anomaly_quantile is not None
    examples = (
        read_evaluation_set(data, bundle.manifest)
        if marked
        else load_data(bundle, data, loader, validation_fraction=0.0).train
    )
    figures = evaluated(bundle, examples, engine=engine, builder=builder)
    if as_json:
        render.print_json([dict(figures)])
        return
    for name, value in figures.items():
        render.console().print(f"{name}  {value:.6g}")


@app.command()
def convert(
    folder: Folder,
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write. Its suffix is that of the engine's library: .joblib, .pt2 or .pt; or .tflite, for "
            "linear models and perceptrons of scikit-learn.",
            dir_okay=False,
        ),
    ],
    engine: EngineOption = "",
    builder: BuilderOption = "",
) -> None:
    """Convert a model to the format of the library that trained it, or for an application: an estimator, a program, LiteRT.

    A .joblib file is a pickle, and loading one runs code: make it on your own machine, and load only your own.
    """
    from fedgrass.architecture import engine_of
    from fedgrass.bundle import Bundle
    from fedgrass.engines.registry import open_engine
    from fedgrass.errors import EngineError

    _find_modules_here()
    bundle = Bundle.open(folder)
    name = engine or engine_of(bundle)
    save = getattr(open_engine(name, bundle, builder=builder), "save", None)
    if save is None:
        raise EngineError(
            f"engine {name}: writes no file of its own; an application takes {bundle.manifest.application_file}"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    save(output)
    render.console().print(f"wrote {output}: {bundle.manifest.name} {bundle.manifest.version}")


@app.command()
def pack(
    folder: Folder,
    code: Annotated[
        Path,
        typer.Argument(
            help="What builds the model: a folder that its modules are imported from, a .py file, or a wheel.",
            exists=True,
        ),
    ],
    builder: Annotated[
        str, typer.Option(help="module:object in it that builds the model: it is tried with the bundle.")
    ] = "",
    engine: EngineOption = "",
) -> None:
    """Put the code that builds a model into its bundle, so that it reaches the devices with the model.

    A device runs it if its settings name its digest, as `fedgrass model publish --builder` has them do. The same code
    has the same digest. Hidden files, __pycache__ and environments in a folder are left out.
    """
    from tempfile import TemporaryDirectory

    from fedgrass.architecture import engine_of
    from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
    from fedgrass.bundle import BUILDER, Bundle
    from fedgrass.engines.registry import open_engine
    from fedgrass.engines.shipped import unpacked

    bundle, archive = Bundle.open(folder), pack_builder(code)
    # Tried before it is sealed: a device would find the mistake a round later.
    if builder:
        with TemporaryDirectory(prefix="fedgrass-") as place, unpacked(archive, Path(place)):
            open_engine(engine or engine_of(bundle), bundle, builder=builder)
    bundle = add_builder(bundle, archive)
    what = f"{BUILDER} of {bundle.manifest.name} {bundle.manifest.version}"
    render.console().print(f"{what}: {len(archive):,} bytes, sha256 {builder_sha256(bundle)}", soft_wrap=True)


@app.command()
def adapt(
    folder: Folder,
    profile: Annotated[
        Path, typer.Argument(help="A profile: `fedgrass fleet profile --output FILE`.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the new bundle; made if absent.", file_okay=False)],
    version: Annotated[str, typer.Option(help="Its version.", show_default="the next major one")] = "",
) -> None:
    """Scale a model's input by what the whole fleet's data are like.

    The model begins with keras.layers.Normalization. Its mean and variance become the profile's, and so do the means that fill
    missing values in. Publish the new bundle (`fedgrass model publish`) and train on.
    """
    from fedgrass.bundle import Bundle
    from fedgrass.profile.adapt import adapt as adapted
    from fedgrass.profiles_api import read_profile

    given = read_profile(profile)
    made = adapted(Bundle.open(folder), given, output, version=version)
    render.console().print(
        f"wrote {output}: {made.manifest.name} {made.manifest.version}, its input scaled as {given.examples:,.0f} examples on "
        f"{given.devices:,} devices are"
    )


def _find_modules_here() -> None:
    """Make modules in the working directory importable, as Python does for its own programs."""
    # The empty name is the working directory, as `python -m` has it; a console script lacks it.
    if "" not in sys.path:
        sys.path.insert(0, "")
