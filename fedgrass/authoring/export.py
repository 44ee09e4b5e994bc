"""A Keras model in, a model bundle out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tensorflow as tf

from fedgrass import bundle, tensors
from fedgrass.authoring import graph, inference
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.flatbuffer import without_initializer
from fedgrass.authoring.losses import LOSSES
from fedgrass.authoring.model import Model, frozen
from fedgrass.authoring.optimizers import OPTIMIZERS
from fedgrass.authoring.saved_model import SavedModel
from fedgrass.bundle import Bundle, Manifest, TensorDescription
from fedgrass.inference import application_models


def export(
    model: Any,
    folder: Path,
    *,
    loss: bundle.Loss,
    batch_size: int,
    optimizer: bundle.Optimizer | None = None,
    freeze: Sequence[str] = (),
    class_names: Sequence[str] = (),
    name: str | None = None,
    version: str = "1.0.0",
) -> Bundle:
    """Write a model bundle for a model with one input and one output.

    Parameters
    ----------
    model
        A built Keras model, Sequential or functional; or the folder of a SavedModel. A classifier ends in softmax
        (sigmoid for binary cross-entropy) or in logits. Its present weights are the bundle's parameters: those that are
        trained, then the moving statistics of its batch normalizations. Other weights are frozen into the graph.
    folder
        Made if absent; a bundle in it is replaced.
    batch_size
        Examples per training step, fixed in the graph.
    freeze
        Names of layers that are not to be trained, besides those whose ``trainable`` is false.

    Raises
    ------
    UnsupportedModelError
        If a layer cannot be trained with LiteRT's built-in operators.
    """
    given = nullcontext(SavedModel(model, freeze)) if isinstance(model, Path) else frozen(model, freeze)
    with given as source:
        description = {"name": name or source.name, "version": version, "class_names": tuple(class_names)}
        try:
            return _export(source, folder, loss, batch_size, optimizer or bundle.Optimizer(), description)
        except UnsupportedModelError as error:
            raise error.at(source.place(error.where)) from error


def _export(
    model: Model,
    folder: Path,
    loss: bundle.Loss,
    batch_size: int,
    optimizer: bundle.Optimizer,
    description: dict[str, Any],
) -> Bundle:
    parameters = model.values()
    x = tf.TensorSpec([batch_size, *model.x.shape[1:]], model.x.dtype, name="x")
    y = _label(model, loss, batch_size)
    manifest = Manifest.model_construct(
        **description,
        batch_size=batch_size,
        x=TensorDescription(name="x", shape=tuple(x.shape[1:]), dtype=x.dtype.name),
        y=TensorDescription(name="y", shape=tuple(y.shape[1:]), dtype=y.dtype.name),
        output=TensorDescription(name="y", shape=model.output_shape, dtype="float32"),
        loss=loss,
        optimizer=optimizer,
        parameters=tuple(TensorDescription(name=k, shape=v.shape, dtype="float32") for k, v in parameters.items()),
        frozen=model.frozen_names,
        statistics=model.statistics,
    )
    variables = [tf.Variable(value) for value in parameters.values()]
    trained = variables[: model.trained_count]
    owner, signatures = graph.module(
        graph.Forward(
            logits=model.logits(loss),
            output=lambda x, values: model.call(x, values)[0],
            names=tuple(parameters)[: model.trained_count],
            draws_masks=model.draws_masks,
        ),
        LOSSES[loss],
        OPTIMIZERS[optimizer.name](trained, optimizer),
        trained,
        variables[len(trained) :],
        x=x,
        y=y,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / bundle.GRAPH).write_bytes(_convert(owner, signatures))
    content, constants = inference.convert(model, parameters)
    (folder / bundle.INFERENCE_INT8).unlink(missing_ok=True)
    for file, model_content in application_models(content).items():
        (folder / file).write_bytes(model_content)
    tensors.save(folder / bundle.PARAMETERS, parameters)
    return Bundle.seal(folder, manifest.model_copy(update={"constants": constants}))


def _label(model: Model, loss: bundle.Loss, batch_size: int) -> Any:
    if loss == "sparse_categorical_crossentropy":
        return tf.TensorSpec([batch_size], tf.int32, name="y")
    return tf.TensorSpec([batch_size, *model.output_shape], tf.float32, name="y")


def _convert(owner: Any, signatures: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(owner, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        return without_initializer(bytes(converter.convert()))
