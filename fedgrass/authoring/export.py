"""A Keras model or a PyTorch module in, a model bundle out."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from fedgrass import bundle, tensors
from fedgrass.authoring import graph, heads, inference, progress, self_test
from fedgrass.authoring.compiled import Objective, Several, chosen
from fedgrass.authoring.conversion import converted
from fedgrass.authoring.errors import UnsupportedModelError, first_line
from fedgrass.authoring.flatbuffer import without_initializer
from fedgrass.authoring.heads import heads_of
from fedgrass.authoring.losses import loss_function
from fedgrass.authoring.metadata import Description
from fedgrass.authoring.model import KerasModel, Model, frozen
from fedgrass.authoring.optimizers import OPTIMIZERS, Constrained
from fedgrass.authoring.pixels import pixel_range
from fedgrass.authoring.reference import KerasReference, Reference
from fedgrass.authoring.saved_model import SavedModel
from fedgrass.bundle import Bundle, Head, Manifest, TensorDescription
from fedgrass.errors import FedgrassError
from fedgrass.inference import application_models
from fedgrass.personal import local_names

if TYPE_CHECKING:
    import keras
    import torch

Given: TypeAlias = "keras.Model | torch.nn.Module | Path"
"""A Keras model, a PyTorch module, or the folder of a SavedModel."""

_NAMED_COLUMNS = 4096
"""Values of several inputs for which columns of a table have names by default."""


def export(
    model: Given,
    folder: Path,
    *,
    loss: object = None,
    batch_size: int,
    optimizer: object = None,
    freeze: Sequence[str] = (),
    local: Sequence[str] = (),
    class_names: Sequence[str] | Mapping[str, Sequence[str]] = (),
    loss_weights: object = None,
    data: Mapping[str, object] | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    input: object = None,  # noqa: A002 - the key of EXPORT
    anomaly_quantile: float | None = None,
    about: Description | None = None,
    prove: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write a model bundle for a model, of one or several inputs and outputs.

    Parameters
    ----------
    model
        A Keras model, Sequential, functional or subclassed; the folder of a SavedModel; or a ``torch.nn.Module``. A
        classifier ends in softmax (sigmoid for binary cross-entropy) or in logits. Its present weights are the bundle's
        parameters: those that are trained, then the moving statistics of its batch normalizations. Other weights are
        frozen into the graph.
    folder
        Made if absent; a bundle in it is replaced, once the new one is whole.
    loss
        By name, Keras' or PyTorch's alias, function or object; None: what the model was compiled with. Of several outputs one
        for all, or a mapping by name or a list in their order, as Keras takes them.
    loss_weights
        What each output's loss is times in their sum, by name or in order; 1 for each if None.
    class_names
        Of the classes in the order of their numbers; of several outputs by name.
    batch_size
        Examples per training step, fixed in the graph.
    optimizer
        By name, Keras' object or `fedgrass.bundle.Optimizer`; None: what the model was compiled with, else SGD.
    freeze
        Names of layers that are not to be trained, besides those whose ``trainable`` is false.
    local
        What each device keeps for itself, trained and never sent: ``head``, ``bn``, or names of layers or parameters, with ``*``
        (`fedgrass.personal.local_names`).
    data
        How devices find x and y in their tables and images: the fields of `fedgrass.bundle.DataDescription`. ``pixels`` of a
        model that begins with ``Rescaling`` follow from it.
    input
        Shape of one example, or a mapping with ``shape`` and ``dtype``, for a model that does not say: a subclassed one,
        and every PyTorch module; of several inputs these by name.
    anomaly_quantile
        Of a model that reconstructs its input: share of normal examples whose errors lie below the threshold.
    about
        What the application's model says of itself; None: its name, and its classes as ``labels.txt``.
    prove
        Whether to try the bundle in LiteRT and hold its first steps against Keras' (`fedgrass.authoring.self_test`).
    tell
        Is told what of the model was not taken, and what the trial found; every ten seconds or so of a long export where it is.

    Raises
    ------
    UnsupportedModelError
        If a layer cannot be trained with LiteRT's built-in operators, or the trial fails: nothing is written then.

    Examples
    --------
    >>> import fedgrass, keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> bundle = fedgrass.export(model, Path("linear"), loss="mse", batch_size=8, prove=False)
    >>> bundle.manifest.parameter_count
    8
    """
    # Checked by hand: True is an int in Python, and would give a batch of one.
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= 65536:
        raise UnsupportedModelError(f"batch_size {batch_size!r}", "this size", "give a whole number from 1 to 65536")
    if is_torch(model):
        from fedgrass.authoring.torch.losses import objectives as torch_objectives

        loss = torch_objectives(loss)
    objective, rule = chosen(model, loss, optimizer, tell, loss_weights)
    given = _taken(model, objective, freeze, batch_size, input)
    # Everything is made in a scratch folder and moved when whole: a failed export leaves the old bundle.
    with progress.reported(tell), given as source, tempfile.TemporaryDirectory() as scratch, _explained(source):
        description: dict[str, Any] = {
            "name": name or source.name,
            "version": version,
            "class_names": () if source.outputs else tuple(class_names),
        }
        description["anomaly_quantile"] = anomaly_quantile
        description["local"] = _local(local, source)
        if description["local"]:
            tell(f"local: {', '.join(description['local'])} stay on each device")
        about = about or Description(name=description["name"], labels=description["class_names"])
        about = replace(about, quantile=anomaly_quantile)
        described = heads_of(objective, source.outputs or (_only_output(source),), class_names)
        if not source.outputs and described[0].weight != 1:
            raise UnsupportedModelError(
                source.name, f"loss_weights {described[0].weight:g}", "scale the learning rate instead"
            )
        columns = _columns(data or {}, source.inputs, described if source.outputs else ())
        description["data"] = _data(model, source, columns, tell)
        made = _export(source, Path(scratch), described, batch_size, rule, description, about)
        # Before anything is written to the user's folder.
        if prove:
            progress.at("tries the bundle in LiteRT")
            found = self_test.run(made, source, _reference(source, made, described, rule))
            tell(self_test.line(found))
            made = Bundle.seal(made.folder, made.manifest.model_copy(update={"self_test": found}))
        return _moved(made, folder)


def _local(patterns: Sequence[str], source: Model) -> tuple[str, ...] | None:
    described = [TensorDescription(name=k, shape=v.shape, dtype="float32") for k, v in source.values().items()]
    outputs = len(source.outputs) or 1
    return local_names(patterns, described, source.statistics, outputs=outputs) if patterns else None


def _only_output(model: Model) -> TensorDescription:
    return TensorDescription(name="y", shape=model.output_shape, dtype="float32")


def _data(
    model: Given, source: Model, given: Mapping[str, object], tell: Callable[[str], None]
) -> bundle.DataDescription:
    found = pixel_range(model) if "pixels" not in given and not source.inputs else None
    if found is not None:
        tell(f"images: devices give pixels of {found[0]:g} to {found[1]:g}, as the model scales them itself")
    return bundle.DataDescription.model_validate({"pixels": found, **given})


def _columns(
    given: Mapping[str, object], inputs: Sequence[TensorDescription], outputs: Sequence[Head]
) -> dict[str, object]:
    """Return the names of columns of several inputs or outputs: as given, by input or output too, else by theirs."""
    found = dict(given)
    parts = {"columns": inputs, "means": inputs, "labels": [head.y for head in outputs]}
    for key, wanted in parts.items():
        if not wanted:
            continue
        if isinstance(given.get(key), Mapping):
            each = heads.of_each(given[key], [part.name for part in wanted], f"data {key}")
            found[key] = [name for names in each for name in names]
        elif key not in given and key != "means" and sum(part.size for part in wanted) <= _NAMED_COLUMNS:
            found[key] = [name for part in wanted for name in _names_of(part)]
    return found


def _names_of(part: TensorDescription) -> list[str]:
    return [part.name] if part.size == 1 else [f"{part.name}_{at}" for at in range(part.size)]


def is_torch(model: object) -> bool:
    """Whether it is a PyTorch module; torch is not imported to find out."""
    return any(kind.__module__.startswith("torch.nn.") for kind in type(model).__mro__)


def _taken(
    model: Given, objective: Objective | Several, freeze: Sequence[str], batch_size: int, example: object
) -> AbstractContextManager[Model]:
    if isinstance(model, Path):
        return nullcontext(SavedModel(model, freeze))
    if is_torch(model):
        from fedgrass.authoring.torch.model import taken

        return taken(model, example, freeze, batch_size, objective)
    return frozen(model, freeze, example)


def _reference(source: Model, made: Bundle, heads: Sequence[Head], optimizer: bundle.Optimizer) -> Reference | None:
    """Return the framework's own training of the model, where there is one to compare with."""
    if isinstance(source, KerasModel):
        return KerasReference(source, heads, optimizer, made.manifest.batch_size)
    if isinstance(source, SavedModel):
        return None
    from fedgrass.authoring.torch.model import TorchModel
    from fedgrass.authoring.torch.reference import reference

    return reference(source, made) if isinstance(source, TorchModel) else None


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Say what cannot be exported by its layer, whichever library finds it."""
    try:
        yield
    except UnsupportedModelError as error:
        raise error.at(model.place(error.where)) from error
    except (FedgrassError, OSError, MemoryError):
        raise
    # TensorFlow's converter raises bare exceptions; the operator's name is in their text.
    except Exception as error:
        operators = re.findall(r"'?tf\.(\w+)'? op", str(error))
        what = f"operator {operators[0]}" if operators else f"something in it ({first_line(error)})"
        raise UnsupportedModelError(
            _place_in(model, str(error)),
            what,
            "use the layers of docs/models.md, freeze the layers before it, or replace that part",
        ) from error


def _place_in(model: Model, text: str) -> str:
    """Return the layer whose node a converter's message names, or else the model."""
    for node in re.findall(r"""["']([\w./-]+?)[@"':;]""", text):
        place = model.place(node)
        if place != node:
            return place
    return f"model {model.name!r}"


def _moved(made: Bundle, folder: Path) -> Bundle:
    """Put a whole bundle where it belongs; the manifest goes last."""
    folder.mkdir(parents=True, exist_ok=True)
    # A former bundle may have had one, and the new one not: a stale file would not be in the manifest.
    (folder / bundle.INFERENCE_INT8).unlink(missing_ok=True)
    for file in [*made.manifest.files, bundle.MANIFEST]:
        shutil.copyfile(made.folder / file, folder / file)
    return Bundle.open(folder)


def _export(
    model: Model,
    folder: Path,
    described: Sequence[Head],
    batch_size: int,
    optimizer: bundle.Optimizer,
    description: dict[str, Any],
    about: Description,
) -> Bundle:
    parameters, first = model.values(), described[0]
    label = heads.row([head.y for head in described], "y") if model.outputs else first.y
    x = tf.TensorSpec([batch_size, *model.x.shape[1:]], model.x.dtype, name="x")
    y = tf.TensorSpec([batch_size, *label.shape], label.dtype, name="y")
    # model_construct: not validated yet, because digests are missing until it is sealed.
    manifest = Manifest.model_construct(
        **description,
        batch_size=batch_size,
        x=TensorDescription(name="x", shape=tuple(x.shape[1:]), dtype=x.dtype.name),
        y=TensorDescription(name="y", shape=tuple(y.shape[1:]), dtype=y.dtype.name),
        output=_only_output(model),
        inputs=model.inputs,
        outputs=tuple(described) if model.outputs else (),
        loss=first.loss,
        loss_options=first.loss_options,
        optimizer=optimizer,
        parameters=tuple(TensorDescription(name=k, shape=v.shape, dtype="float32") for k, v in parameters.items()),
        frozen=model.frozen_names,
        statistics=model.statistics,
        fixed=tuple(name for name in model.fixed if name not in (description.get("local") or ())),
        loss_mean="examples",
        vocabulary=getattr(model, "vocabulary", None),
        vocabularies=model.vocabularies(),
    )
    # The statistics behind the trained ones, as the signatures take and give them.
    variables = [tf.Variable(value) for value in parameters.values()]
    trained = variables[: model.trained_count]
    stepped = [
        variable if constraint is None else Constrained(variable, constraint)
        for variable, constraint in zip(trained, model.constraints(), strict=True)
    ]
    owner, signatures = graph.module(
        graph.Forward(
            logits=model.logits([head.loss for head in described]),
            output=lambda x, values: model.call(x, values).logits,
            names=tuple(parameters)[: model.trained_count],
            draws_masks=model.draws_masks,
        ),
        heads.loss_of(described) if model.outputs else loss_function(first.loss, first.loss_options),
        OPTIMIZERS[optimizer.name](stepped, optimizer),
        trained,
        variables[len(trained) :],
        x=x,
        y=y,
        settings=optimizer,
    )
    (folder / bundle.GRAPH).write_bytes(_convert(owner, signatures))
    progress.at("makes the application's model")
    content, constants = inference.convert(model, parameters, about)
    for file, model_content in application_models(content).items():
        (folder / file).write_bytes(model_content)
    tensors.save(folder / bundle.PARAMETERS, parameters)
    return Bundle.seal(folder, manifest.model_copy(update={"constants": constants}))


def _convert(owner: tf.Module, signatures: dict[str, tf.types.experimental.ConcreteFunction]) -> bytes:
    count = sum(len(function.graph.get_operations()) for function in signatures.values())
    # The converter says nothing until it is done: it takes about as long as tracing did.
    progress.at(f"LiteRT converts {count:,} operations")
    return without_initializer(converted(owner, signatures))
