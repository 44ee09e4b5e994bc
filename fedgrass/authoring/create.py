"""``fedgrass model create``: a sensible small model for those who have none, ready to train on devices.

Every architecture is plain: convolutions or dense layers with relu. Nothing in them keeps statistics of its own device's
data, so averaging them is sound from the first round.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedgrass.errors import ConfigurationError

if TYPE_CHECKING:
    from fedgrass.bundle import Bundle

Task = Literal["image-classifier", "tabular-classifier", "regressor", "time-series"]

_SMALLEST_MAP = 8
_FIRST_FILTERS = 16
_MOST_FILTERS = 64
_HIDDEN = 64
_DIMENSIONS = {"image-classifier": 3, "tabular-classifier": 1, "regressor": 1, "time-series": 2}


def create(
    task: Annotated[Task, typer.Argument(help="What the model is for.")],
    input_shape: Annotated[
        str,
        typer.Option(
            help="One example's shape: 28,28,1 (height, width, channels), 12 (features) or 100,3 (steps, features)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model bundle; made if absent.", file_okay=False)],
    classes: Annotated[str, typer.Option(help="Number of classes, or their names: 10, or cat,dog.")] = "",
    outputs: Annotated[int, typer.Option(min=1, help="Values to predict, where there are no classes.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Examples in a training step.")] = 16,
    optimizer: Annotated[Literal["sgd", "momentum", "adam"], typer.Option(help="How devices train it.")] = "sgd",
    name: Annotated[str, typer.Option(help="The model's name; else the task.")] = "",
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
) -> None:
    """Create a model bundle from a task's default architecture.

    A time series is classified where --classes is given, else its next --outputs values are predicted. Scale inputs to
    about 0..1 (images) or to a mean of 0 and a deviation of 1 in the data loader.
    """
    bundle = create_bundle(
        task,
        _shape(input_shape),
        output,
        classes=_class_names(classes),
        outputs=outputs,
        batch_size=batch_size,
        optimizer=optimizer,
        name=name or task,
        seed=seed,
    )
    manifest = bundle.manifest
    typer.echo(f"{bundle.folder}: {manifest.name}, {manifest.parameter_count:,} parameters, loss {manifest.loss}")
    typer.echo(f"next: fedgrass model inspect {output}; fedgrass model publish {output}")


def create_bundle(
    task: Task,
    input_shape: tuple[int, ...],
    folder: Path,
    *,
    classes: tuple[str, ...] = (),
    outputs: int = 1,
    batch_size: int = 16,
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd",
    name: str = "model",
    seed: int = 0,
) -> Bundle:
    """Write the bundle of a task's default architecture.

    Raises
    ------
    ConfigurationError
        If the shape or the classes are not what the task takes, or TensorFlow is not installed.
    """
    expected = _DIMENSIONS[task]
    if len(input_shape) != expected or min(input_shape) < 1:
        raise ConfigurationError(f"--input-shape {input_shape}: {task} takes {expected} whole numbers of at least 1")
    if task.endswith("classifier") and len(classes) < 2:
        raise ConfigurationError(f"--classes: {task} needs a number of classes of at least 2, or their names")
    if task == "regressor" and classes:
        raise ConfigurationError("--classes: a regressor has none; use tabular-classifier, or --outputs")
    try:
        from fedgrass.authoring.export import export
    except ImportError as error:
        raise ConfigurationError(
            "fedgrass model create: needs TensorFlow; pip install 'fedgrass[authoring]'"
        ) from error
    from fedgrass.bundle import Optimizer

    return export(
        build_model(task, input_shape, outputs=len(classes) or outputs, classifies=bool(classes), seed=seed),
        folder,
        loss="sparse_categorical_crossentropy" if classes else "mean_squared_error",
        batch_size=batch_size,
        optimizer=Optimizer(name=optimizer),
        class_names=classes,
        name=name,
    )


def build_model(task: Task, input_shape: tuple[int, ...], *, outputs: int, classifies: bool, seed: int = 0) -> Any:
    """Return the untrained Keras model; the same weights each time."""
    import keras

    keras.utils.set_random_seed(seed)
    head = keras.layers.Dense(outputs, activation="softmax" if classifies else None, name="output")
    hidden = keras.layers.Dense(_HIDDEN, activation="relu", name="hidden")
    body = _BODIES[task](keras.layers, input_shape)
    return keras.Sequential([keras.Input(input_shape, name="x"), *body, hidden, head], name="model")


def _image(layers: Any, shape: tuple[int, ...]) -> list[Any]:
    """Convolution and pooling until the map is small: 8×8 takes one stage, 28×28 two, 96×96 four."""
    body: list[Any] = []
    side, filters = min(shape[:2]), _FIRST_FILTERS
    while True:
        stage = len(body) // 2
        body.append(layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{stage}"))
        if side < 2:
            break
        body.append(layers.MaxPooling2D(2, name=f"pool{stage}"))
        side, filters = side // 2, min(2 * filters, _MOST_FILTERS)
        if side < _SMALLEST_MAP:
            break
    return [*body, layers.Flatten(name="flatten")]


def _table(layers: Any, _shape: tuple[int, ...]) -> list[Any]:
    return [layers.Dense(_HIDDEN, activation="relu", name="features")]


def _series(layers: Any, shape: tuple[int, ...]) -> list[Any]:
    """Two strided convolutions over time, written in two dimensions."""
    steps, features = shape
    return [
        layers.Reshape((steps, 1, features), name="steps"),
        layers.Conv2D(32, (5, 1), strides=(2, 1), padding="same", activation="relu", name="conv0"),
        layers.Conv2D(32, (5, 1), strides=(2, 1), padding="same", activation="relu", name="conv1"),
        layers.Flatten(name="flatten"),
    ]


_BODIES: dict[Task, Callable[[Any, tuple[int, ...]], list[Any]]] = {
    "image-classifier": _image,
    "tabular-classifier": _table,
    "regressor": _table,
    "time-series": _series,
}


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigurationError(
            f"--input-shape {text!r}: expected whole numbers with commas, such as 28,28,1"
        ) from None


def _class_names(text: str) -> tuple[str, ...]:
    if text.isdecimal():
        return tuple(str(number) for number in range(int(text)))
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(set(names)) != len(names):
        raise ConfigurationError(f"--classes {text!r}: a name occurs twice")
    return names
