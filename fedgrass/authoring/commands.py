"""``fedgrass model export``: a model in a file becomes a model bundle."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from fedgrass.bundle import DataDescription, Loss, Optimizer, OptimizerName
from fedgrass.errors import ConfigurationError, FedgrassError, first_problem

if TYPE_CHECKING:
    from fedgrass.bundle import Bundle


def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="A .keras file, a .py file with build_model() (Keras or PyTorch) and perhaps EXPORT, or a SavedModel's folder.",
            exists=True,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model bundle; made if absent.", file_okay=False)],
    loss: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(get_args(Loss))}, or Keras' alias. [default: the compiled model's]"),
    ] = "",
    optimizer: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(get_args(OptimizerName))}. [default: the compiled model's, else sgd]"),
    ] = "",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=100,
            help="Learning rate of rounds that set none. [default: the compiled model's, else by optimizer]",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=0, max=65536, help="Examples in a training step; fixed in the graph.")
    ] = 0,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Layer (SavedModel: or variable) that is not trained and does not travel; may be repeated."),
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option(
            help="Parameters that each device trains and keeps: head (the last layer), bn (batch normalizations), or a layer or "
            "parameter by name, with *; may be repeated."
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Names of the classes, separated by commas.")] = "",
    name: Annotated[str, typer.Option(help="Name of the model. [default: the Keras model's, or the folder's]")] = "",
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    self_test: Annotated[
        bool, typer.Option(help="Try the bundle in LiteRT, and compare its first steps with the framework's.")
    ] = True,
) -> None:
    """Export a Keras model, a PyTorch module or a SavedModel as a bundle that devices can train without either library.

    What is not given is taken from EXPORT of a .py file, a dictionary with loss, batch_size, optimizer, learning_rate,
    class_names, data, freeze, local, name, anomaly_quantile and input (the shape of one example, which a PyTorch module does not
    know); then from what the model was compiled with. Of several outputs loss, loss_weights and class_names are by output, of
    several inputs input is by name.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Before TensorFlow is imported, which takes seconds.
    _check(loss, optimizer)
    keras_model, options = _load(model)
    given: dict[str, object] = {
        "loss": loss,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "freeze": freeze,
        "local": local,
        "class_names": tuple(part.strip() for part in classes.split(",") if part.strip()),
        "name": name,
    }
    # =| What is given on the command line wins over EXPORT; what is empty was not given.
    options |= {key: value for key, value in given.items() if value}
    if "batch_size" not in options:
        raise ConfigurationError(f"{model}: give --batch-size, or EXPORT in a .py file")
    bundle = _exported(model, keras_model, output, options | {"version": version, "prove": self_test})
    manifest = bundle.manifest
    typer.echo(
        f"{bundle.folder}: {manifest.name}, {manifest.parameter_count:,} parameters, loss {manifest.loss}, "
        f"{manifest.optimizer.name} at {manifest.optimizer.rate:g}"
    )
    typer.echo(f"next: fedgrass model inspect {output}; fedgrass model publish {output}")


def _check(loss: str, optimizer: str) -> None:
    """Refuse a loss or optimizer before TensorFlow is loaded, where that can be said already."""
    if optimizer and optimizer.lower() not in get_args(OptimizerName):
        raise ConfigurationError(f"--optimizer {optimizer}: expected one of {', '.join(get_args(OptimizerName))}")
    if loss and not loss.replace("_", "").isalnum():
        raise ConfigurationError(f"--loss {loss}: expected one of {', '.join(get_args(Loss))}")


def _exported(path: Path, model: object, output: Path, options: dict[str, Any]) -> Bundle:
    from fedgrass.authoring.compiled import optimizer as read_optimizer
    from fedgrass.authoring.export import export as export_model
    from fedgrass.authoring.quiet import quiet

    rate = options.pop("learning_rate", None)
    try:
        with quiet():
            if rate is not None:
                own = getattr(model, "optimizer", None) if getattr(model, "compiled", False) else None
                # A rate alone keeps the optimizer that the model was compiled with.
                chosen = options.get("optimizer", own)
                rule = Optimizer() if chosen is None else read_optimizer(chosen)
                options["optimizer"] = Optimizer(**rule.model_dump() | {"learning_rate": rate})
            return export_model(model, output, tell=typer.echo, **options)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {first_problem(error)}") from error


_EXPORT_KEYS = (
    "loss",
    "loss_weights",
    "batch_size",
    "optimizer",
    "learning_rate",
    "class_names",
    "data",
    "freeze",
    "local",
    "name",
    "input",
    "anomaly_quantile",
)


def _load(path: Path) -> tuple[object, dict[str, Any]]:
    """Return the Keras model in ``path``, or ``path`` if it is a SavedModel's, and the options that come with it."""
    from fedgrass.authoring.quiet import quiet
    from fedgrass.authoring.unused import without_unused

    try:
        with quiet(), without_unused():
            import tensorflow  # noqa: F401 - so that its messages end here
    except ImportError as error:
        raise ConfigurationError(
            "fedgrass model export: needs TensorFlow; pip install 'fedgrass[authoring]'"
        ) from error
    if path.suffix == ".py":
        return _from_python(path)
    if path.suffix == ".keras":
        from fedgrass.authoring.keras_file import load

        notes: list[str] = []
        with quiet():
            loaded = load(path, notes.append)
        for note in notes:
            typer.echo(note)
        return loaded, {}
    if (path / "saved_model.pb").exists():
        return path, {}
    raise ConfigurationError(
        f"{path}: expected a .keras file, a .py file with build_model(), or the folder of a SavedModel"
    )


def _from_python(path: Path) -> tuple[object, dict[str, Any]]:
    """Run a file, which is the user's own, and call its build_model()."""
    try:
        # The file runs with all the rights of whoever calls this: it is their own code, on their own machine.
        namespace = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{path}{_line(error, path)}: it cannot be run ({_said(error)}); correct it"
        ) from error
    build, options = namespace.get("build_model"), namespace.get("EXPORT", {})
    if not callable(build):
        raise ConfigurationError(
            f"{path}: has no function build_model() that returns a built Keras model or a torch.nn.Module"
        )
    if not isinstance(options, dict):
        raise ConfigurationError(f"{path}: EXPORT is a {type(options).__name__}; expected a dictionary")
    if unknown := [key for key in options if key not in _EXPORT_KEYS]:
        raise ConfigurationError(
            f"{path}: EXPORT has {unknown[0]!r}, which is not known; expected some of {', '.join(_EXPORT_KEYS)}"
        )
    _check_options(path, options)
    try:
        model = build()
    # Our own errors say what to do; only what is foreign is put into words.
    except FedgrassError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{path}{_line(error, path)}: build_model() fails ({_said(error)}); correct it"
        ) from error
    if model is None:
        raise ConfigurationError(f"{path}: build_model() returns None; end it with return model")
    return model, dict(options)


def _check_options(path: Path, options: dict[str, Any]) -> None:
    for key in ("class_names", "freeze", "local"):
        value = options.get(key, ())
        if key == "class_names" and isinstance(value, dict):  # by output
            value = [name for names in value.values() for name in _listed(names)]
        if isinstance(value, str) or not all(isinstance(part, str) for part in _listed(value)):
            raise ConfigurationError(f"{path}: EXPORT[{key!r}] is {value!r}; expected a list of names")
    size, rate = options.get("batch_size", 1), options.get("learning_rate", 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 65536:
        raise ConfigurationError(f"{path}: EXPORT['batch_size'] is {size!r}; expected a whole number from 1 to 65536")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 100:
        raise ConfigurationError(f"{path}: EXPORT['learning_rate'] is {rate!r}; expected a number up to 100")
    _check_data(path, options.get("data", {}))
    if not isinstance(options.get("name", ""), str):
        raise ConfigurationError(f"{path}: EXPORT['name'] is {options['name']!r}; expected a text")


def _check_data(path: Path, data: object) -> None:
    expected = f"expected {', '.join(DataDescription.model_fields)}"
    if isinstance(data, dict) and (unknown := [key for key in data if key not in DataDescription.model_fields]):
        raise ConfigurationError(f"{path}: EXPORT['data'] has {unknown[0]!r}, which is not known; {expected}")
    if isinstance(data, dict):  # of several inputs and outputs by name: their number shows when the model is known
        data = {key: value for key, value in data.items() if not isinstance(value, dict)}
    try:
        DataDescription.model_validate(data)
    except ValidationError as error:
        problem = first_problem(error, "EXPORT['data']", prefix="EXPORT['data'] ")
        raise ConfigurationError(f"{path}: {problem}; {expected}") from error


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple, set, range)) else [None]


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _line(error: BaseException, path: Path) -> str:
    """Return the last line of the file that an error went through, as ``:12``."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            # The deepest frame in the user's file wins: that is the line to look at.
            found = f":{trace.tb_lineno}"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f":{error.lineno}"
    return found
