"""``fedgrass model export``: a model in a file becomes a model bundle."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from fedgrass.bundle import Loss, Optimizer
from fedgrass.errors import ConfigurationError


def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="A .keras file, a .py file with build_model() and, optionally, EXPORT, or the folder of a SavedModel.",
            exists=True,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model bundle; made if absent.", file_okay=False)],
    loss: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Loss))}.")] = "",
    optimizer: Annotated[
        Literal["", "sgd", "momentum", "adam"],
        typer.Option(help="How devices train it. [default: sgd]", show_default=False),
    ] = "",
    batch_size: Annotated[
        int, typer.Option(min=0, max=65536, help="Examples in a training step; fixed in the graph.")
    ] = 0,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Layer (SavedModel: or variable) that is not trained and does not travel; may be repeated."),
    ] = None,
    classes: Annotated[str, typer.Option(help="Names of the classes, with commas.")] = "",
    name: Annotated[str, typer.Option(help="The model's name; else that of the Keras model or of the folder.")] = "",
    version: Annotated[str, typer.Option(help="Of the bundle.")] = "1.0.0",
) -> None:
    """Export a Keras model or a SavedModel as a bundle that devices can train without TensorFlow.

    What is not given is taken from EXPORT of a .py file: a dictionary with loss, batch_size, optimizer, class_names, freeze.
    """
    if loss and loss not in get_args(Loss):
        raise ConfigurationError(f"--loss {loss}: expected one of {', '.join(get_args(Loss))}")
    keras_model, options = _load(model)
    given: dict[str, Any] = {
        "loss": loss,
        "batch_size": batch_size,
        "optimizer": Optimizer(name=optimizer) if optimizer else None,
        "freeze": freeze,
        "class_names": tuple(part.strip() for part in classes.split(",") if part.strip()),
        "name": name,
    }
    options |= {key: value for key, value in given.items() if value}
    for key in ("loss", "batch_size"):
        if key not in options:
            raise ConfigurationError(f"{model}: give --{key.replace('_', '-')}, or EXPORT in a .py file")

    from fedgrass.authoring.export import export as export_model

    bundle = export_model(keras_model, output, version=version, **options)
    manifest = bundle.manifest
    typer.echo(f"{bundle.folder}: {manifest.name}, {manifest.parameter_count:,} parameters, loss {manifest.loss}")
    typer.echo(f"next: fedgrass model inspect {output}; fedgrass model publish {output}")


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the Keras model in ``path``, or ``path`` if it is a SavedModel's, and the options that come with it."""
    try:
        import keras
    except ImportError as error:
        raise ConfigurationError(
            "fedgrass model export: needs TensorFlow; pip install 'fedgrass[authoring]'"
        ) from error
    if path.suffix == ".py":
        namespace = runpy.run_path(str(path))
        if not callable(namespace.get("build_model")):
            raise ConfigurationError(f"{path}: has no function build_model() that returns a built Keras model")
        return namespace["build_model"](), dict(namespace.get("EXPORT", {}))
    if path.suffix == ".keras":
        try:
            return keras.saving.load_model(path, compile=False), {}
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"{path}: Keras cannot load it ({str(error).splitlines()[0]}); a model with custom layers goes into a .py file"
            ) from error
    if (path / "saved_model.pb").exists():
        return path, {}
    raise ConfigurationError(
        f"{path}: expected a .keras file, a .py file with build_model(), or the folder of a SavedModel"
    )
