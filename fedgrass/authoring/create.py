"""``fedgrass model create``: a sensible model for those who have none, ready to train on devices.

Default architectures are plain (`fedgrass.authoring.architectures`); an image classifier may have a network of
``keras.applications`` as its body instead, with weights from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from fedgrass.bundle import DataDescription
from fedgrass.errors import ConfigurationError, first_problem

if TYPE_CHECKING:
    from fedgrass.authoring.metadata import Description
    from fedgrass.bundle import Bundle

Task = Literal[
    "image-classifier",
    "audio-classifier",
    "text-classifier",
    "tabular-classifier",
    "anomaly-detector",
    "regressor",
    "forecaster",
    "time-series",
]

# How many whole numbers --input-shape may have.
_DIMENSIONS: dict[str, tuple[int, ...]] = {
    "image-classifier": (3,),
    "audio-classifier": (1,),
    "text-classifier": (1,),
    "tabular-classifier": (1,),
    "anomaly-detector": (1, 2, 3),
    "regressor": (1,),
    "forecaster": (2,),
    "time-series": (2,),
}
_MOST_WORDS = 200_000
_MAX_VOCABULARY_BYTES = 8 << 20


def create(
    task: Annotated[Task, typer.Argument(help="What the model is for.")],
    input_shape: Annotated[
        str,
        typer.Option(
            help="Shape of one example: 96,96,3 (height, width, channels), 16000 (samples of a sound), 64 (words of a text), 12 "
            "(features) or 100,3 (steps, features)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model bundle; made if absent.", file_okay=False)],
    classes: Annotated[str, typer.Option(help="Number of classes, or their names: 10, or cat,dog.")] = "",
    outputs: Annotated[int, typer.Option(min=1, help="Number of values to predict (forecaster: at each step).")] = 1,
    backbone: Annotated[
        str,
        typer.Option(
            help="Image classifier: its body, one of mobilenet, mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large. "
            "Random without --weights; nothing is downloaded."
        ),
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File with the backbone's weights, without its top: .weights.h5 or …_no_top.h5.", exists=True
        ),
    ] = None,
    train_backbone: Annotated[
        bool | None,
        typer.Option(
            "--train-backbone/--freeze-backbone",
            help="Whether devices train the backbone too. [default: only without --weights]",
            show_default=False,
        ),
    ] = None,
    sample_rate: Annotated[int, typer.Option(min=1000, max=192_000, help="Audio: samples in a second.")] = 16_000,
    vocabulary: Annotated[
        str,
        typer.Option(help="Text: file with a word on each line, in the order of their numbers; or how many there are."),
    ] = "",
    horizon: Annotated[int, typer.Option(min=1, max=10_000, help="Forecaster: steps to predict.")] = 1,
    quantile: Annotated[
        float,
        typer.Option(
            min=0.5, max=0.9999, help="Anomaly detector: share of normal examples whose errors lie below the threshold."
        ),
    ] = 0.99,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Examples in a training step.")] = 16,
    optimizer: Annotated[Literal["sgd", "momentum", "adam"], typer.Option(help="Optimizer on the devices.")] = "sgd",
    name: Annotated[str, typer.Option(help="Name of the model. [default: the task]")] = "",
    seed: Annotated[int, typer.Option(help="Random seed of the initial weights.")] = 0,
) -> None:
    """Create a model bundle for a task: a default architecture, or for images a known network with your weights.

    Examples: image-classifier --input-shape 96,96,3 --classes cat,dog --backbone mobilenet_v3_small --weights small.weights.h5;
    audio-classifier --input-shape 16000 --classes yes,no; text-classifier --input-shape 64 --vocabulary words.txt --classes 2;
    anomaly-detector --input-shape 12; forecaster --input-shape 96,3 --horizon 24.

    A time series is classified where --classes is given, else its next --outputs values are predicted. Scale inputs in the data
    loader: images to 0..1, sounds to -1..1, texts to the numbers of their words. Tables and series are scaled by what the fleet's
    data are like: `fedgrass model adapt`. An anomaly detector's y is its x; a forecaster's is horizon × outputs.
    """
    from fedgrass.authoring.unused import without_unused

    with without_unused():
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
            backbone=backbone,
            weights=weights,
            train_backbone=train_backbone,
            sample_rate=sample_rate,
            vocabulary=_words(vocabulary),
            horizon=horizon,
            quantile=quantile,
            tell=typer.echo,
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
    backbone: str = "",
    weights: Path | None = None,
    train_backbone: bool | None = None,
    sample_rate: int = 16_000,
    vocabulary: int | tuple[str, ...] = 0,
    horizon: int = 1,
    quantile: float = 0.99,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle of a task's model.

    Parameters
    ----------
    task
        What the model is for.
    input_shape
        One example's shape.
    folder
        Where the bundle goes; made if absent.
    classes
        Names of the classes, for classifiers.
    outputs
        How many values are predicted, for others (at each step, of a forecaster).
    batch_size, optimizer, name, seed, tell
        As `fedgrass.authoring.export.export` and Keras take them.
    backbone, weights, train_backbone
        Of an image classifier: its body, a file with that body's weights, and whether it is trained (None: only if random).
    sample_rate
        Of an audio classifier, in Hz.
    vocabulary
        Of a text classifier: its words in the order of their numbers, or how many numbers there are.
    horizon
        Steps that a forecaster predicts.
    quantile
        Of an anomaly detector: share of normal examples whose reconstruction errors lie below its threshold.

    Returns
    -------
    Bundle
        What was written.

    Raises
    ------
    ConfigurationError
        If the shape, the classes or an option are not what the task takes, or TensorFlow is not installed.

    Examples
    --------
    >>> import fedgrass
    >>> bundle = fedgrass.create("regressor", (3,), Path("pump"), name="pump")
    >>> bundle.manifest.loss, bundle.manifest.output.shape
    ('mean_squared_error', (1,))
    """
    _check(task, input_shape, classes, vocabulary)
    data = _data(task, vocabulary, sample_rate)
    # A weights file without a backbone would be ignored without a word.
    if (backbone or weights is not None) and (task != "image-classifier" or not backbone):
        raise ConfigurationError("--backbone, --weights: an image-classifier has a backbone, and the weights are its")
    try:
        import keras

        from fedgrass.authoring import architectures, backbones
        from fedgrass.authoring.export import export
    except ImportError as error:
        raise ConfigurationError(
            "fedgrass model create: needs TensorFlow; pip install 'fedgrass[authoring]'"
        ) from error
    from fedgrass.bundle import Optimizer

    # Before the model is built: the seed decides its initial weights.
    keras.utils.set_random_seed(seed)
    if backbone:
        # Published weights stay fixed by default, so that only the small last layer travels each round.
        train = weights is None if train_backbone is None else train_backbone
        model = backbones.classifier(backbone, input_shape, len(classes), weights, train=train)
    elif task == "audio-classifier":
        model = architectures.audio(keras, input_shape[0], sample_rate, len(classes))
    elif task == "text-classifier":
        words = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
        model = architectures.text(keras, input_shape[0], words, len(classes))
    elif task == "anomaly-detector":
        model = architectures.autoencoder(keras, input_shape)
    elif task == "forecaster":
        model = architectures.forecaster(keras, input_shape, horizon, outputs)
    else:
        model = build_model(task, input_shape, outputs=len(classes) or outputs, classifies=bool(classes), seed=seed)
    return export(
        model,
        folder,
        # Labels of device data are numbers of classes.
        loss="sparse_categorical_crossentropy" if classes else "mean_squared_error",
        batch_size=batch_size,
        optimizer=Optimizer(name=optimizer),
        class_names=classes,
        name=name,
        anomaly_quantile=quantile if task == "anomaly-detector" else None,
        data=data,
        tell=tell,
        about=_description(task, name, input_shape, classes, vocabulary, sample_rate, quantile),
    )


def build_model(task: Task, input_shape: tuple[int, ...], *, outputs: int, classifies: bool, seed: int = 0) -> Any:
    """Build the untrained Keras model of an image or tabular classifier, a regressor or a time series.

    Parameters
    ----------
    task
        What the model is for.
    input_shape
        One example's shape.
    outputs
        How many classes, or values.
    classifies
        Whether they are classes.
    seed
        Of the initial weights: the same gives the same ones.

    Returns
    -------
    keras.Model
        The model.
    """
    import keras

    from fedgrass.authoring.architectures import BODIES, HIDDEN

    keras.utils.set_random_seed(seed)
    head = keras.layers.Dense(outputs, activation="softmax" if classifies else None, name="output")
    hidden = keras.layers.Dense(HIDDEN, activation="relu", name="hidden")
    body = BODIES[task](keras.layers, input_shape)
    return keras.Sequential([keras.Input(input_shape, name="x"), *body, hidden, head], name="model")


def _check(
    task: Task, input_shape: tuple[int, ...], classes: tuple[str, ...], vocabulary: int | tuple[str, ...]
) -> None:
    expected = _DIMENSIONS[task]
    if len(input_shape) not in expected or min(input_shape) < 1:
        numbers = " or ".join(map(str, expected))
        raise ConfigurationError(f"--input-shape {input_shape}: {task} takes {numbers} whole numbers of at least 1")
    if task.endswith("classifier") and len(classes) < 2:
        raise ConfigurationError(f"--classes: {task} needs a number of classes of at least 2, or their names")
    if task == "regressor" and classes:
        raise ConfigurationError("--classes: a regressor has none; use tabular-classifier, or --outputs")
    if task in ("anomaly-detector", "forecaster") and classes:
        raise ConfigurationError(f"--classes: {task} has none; leave it out")
    words = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
    if task == "text-classifier" and not 2 <= words <= _MOST_WORDS:
        raise ConfigurationError(
            f"--vocabulary: text-classifier needs a file of 2 to {_MOST_WORDS} words, one on each line, or their number"
        )
    if task != "text-classifier" and words:
        raise ConfigurationError(f"--vocabulary: {task} has none; leave it out")


def _data(task: Task, vocabulary: int | tuple[str, ...], sample_rate: int) -> dict[str, object]:
    """Return what devices need besides the model to make x of their texts or sounds."""
    if task == "audio-classifier":
        return {"sample_rate": sample_rate}
    if isinstance(vocabulary, int):
        return {}
    try:
        return {"vocabulary": DataDescription(vocabulary=vocabulary).vocabulary}
    except ValidationError as error:
        raise ConfigurationError(f"--vocabulary: {first_problem(error)}") from error


def _description(
    task: Task,
    name: str,
    input_shape: tuple[int, ...],
    classes: tuple[str, ...],
    vocabulary: int | tuple[str, ...],
    sample_rate: int,
    quantile: float,
) -> Description:
    from fedgrass.authoring.metadata import Description

    inputs = {
        "image-classifier": "pixels from 0 to 1",
        "audio-classifier": f"sound from -1 to 1, {sample_rate} samples a second",
        "text-classifier": "numbers of words; the numbers are lines of the vocabulary, from 0",
        "forecaster": "past steps, scaled to a mean of 0 and a deviation of 1",
    }
    results = {
        "anomaly-detector": "the input as the model knows it; its mean squared difference from the input is the error, and "
        f"{quantile:g} of normal examples' errors lie below the threshold",
        "forecaster": "the next steps",
    }
    return Description(
        name=name,
        text=f"{task}, trained by a fleet of devices",
        x=inputs.get(task, "values scaled to a mean of 0 and a deviation of 1"),
        y=results.get(task, "probability of each class" if classes else "predicted values"),
        labels=classes,
        vocabulary=vocabulary if isinstance(vocabulary, tuple) else (),
        image=(input_shape[0], input_shape[1], input_shape[2]) if task == "image-classifier" else None,
    )


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigurationError(
            f"--input-shape {text!r}: expected whole numbers with commas, such as 28,28,1"
        ) from None


def _class_names(text: str) -> tuple[str, ...]:
    # A number of classes: their names are then 0, 1, 2 …
    if text.isdecimal():
        return tuple(str(number) for number in range(int(text)))
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(set(names)) != len(names):
        raise ConfigurationError(f"--classes {text!r}: a name occurs twice")
    return names


def _words(text: str) -> int | tuple[str, ...]:
    """Return the words of a file, or their number."""
    if not text:
        return 0
    if text.isdecimal():
        return int(text)
    path = Path(text)
    try:
        # Before it is read: the vocabulary becomes part of the application's model.
        if path.stat().st_size > _MAX_VOCABULARY_BYTES:
            raise ConfigurationError(f"--vocabulary {text}: is larger than {_MAX_VOCABULARY_BYTES} bytes")
        words = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--vocabulary {text}: cannot be read as UTF-8 text ({error})") from error
    if len(set(words)) != len(words):
        raise ConfigurationError(f"--vocabulary {text}: a word occurs twice; give each line another one")
    return words
