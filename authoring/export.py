"""A Keras model in, a model bundle out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from authoring import graph, inference
from authoring.errors import UnsupportedModelError
from authoring.flatbuffer import without_initializer
from authoring.losses import LOSSES
from authoring.model import KerasModel
from authoring.optimizers import OPTIMIZERS
from fedgrass import bundle, tensors
from fedgrass.bundle import Bundle, Manifest, TensorDescription
from fedgrass.inference import application_models

_FINAL_ACTIVATION = {
    "sparse_categorical_crossentropy": "softmax",
    "categorical_crossentropy": "softmax",
    "binary_crossentropy": "sigmoid",
}


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
    """Write a model bundle for a built Keras model with one input and one output.

    Parameters
    ----------
    model
        Sequential or functional. A classifier ends in softmax (sigmoid for binary cross-entropy) or in logits. Its
        present weights are the bundle's parameters: those that are trained, then the moving statistics of its batch
        normalizations. Other weights are frozen into the graph.
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
    with _frozen(model, freeze):
        return _export(
            model,
            folder,
            loss,
            batch_size,
            optimizer or bundle.Optimizer(),
            {"name": name or model.name, "version": version, "class_names": tuple(class_names)},
        )


def _export(
    model: Any,
    folder: Path,
    loss: bundle.Loss,
    batch_size: int,
    optimizer: bundle.Optimizer,
    description: dict[str, Any],
) -> Bundle:
    _check(model)
    keras_model = KerasModel(model)
    parameters = keras_model.values()
    x = tf.TensorSpec([batch_size, *model.inputs[0].shape[1:]], model.inputs[0].dtype, name="x")
    y = _label(model, loss, batch_size)
    output = model.outputs[0]
    manifest = Manifest.model_construct(
        **description,
        batch_size=batch_size,
        x=TensorDescription(name="x", shape=tuple(x.shape[1:]), dtype=x.dtype.name),
        y=TensorDescription(name="y", shape=tuple(y.shape[1:]), dtype=y.dtype.name),
        output=TensorDescription(name="y", shape=tuple(output.shape[1:]), dtype="float32"),
        loss=loss,
        optimizer=optimizer,
        parameters=tuple(TensorDescription(name=k, shape=v.shape, dtype="float32") for k, v in parameters.items()),
        frozen=keras_model.frozen_names,
    )
    variables = [tf.Variable(value) for value in parameters.values()]
    trained = variables[: len(model.trainable_variables)]
    owner, signatures = graph.module(
        graph.Forward(
            logits=_without_final_activation(keras_model, loss),
            output=lambda x, values: keras_model.call(x, values)[0],
            counts_steps=keras_model.draws_masks,
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
    content, constants = inference.convert(keras_model, parameters)
    (folder / bundle.INFERENCE_INT8).unlink(missing_ok=True)
    for file, model_content in application_models(content).items():
        (folder / file).write_bytes(model_content)
    tensors.save(folder / bundle.PARAMETERS, parameters)
    return Bundle.seal(folder, manifest.model_copy(update={"constants": constants}))


@contextmanager
def _frozen(model: Any, names: Sequence[str]) -> Iterator[None]:
    layers = {layer.name: layer for layer in model._flatten_layers() if layer is not model}
    unknown = sorted(set(names) - layers.keys())
    if unknown:
        raise UnsupportedModelError(
            model.name, f"freezing {unknown[0]!r}, which it does not have,", f"choose among {', '.join(layers)}"
        )
    before = {layer: layer.trainable for layer in layers.values()}
    try:
        for name in names:
            layers[name].trainable = False
        yield
    finally:
        for layer, trainable in before.items():
            layer.trainable = trainable


def _check(model: Any) -> None:
    if not getattr(model, "built", False) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedModelError(
            model.name,
            "a model that is not built, or has several inputs or outputs",
            "give a built model with one of each",
        )
    if None in model.inputs[0].shape[1:]:
        raise UnsupportedModelError(
            model.name, f"input shape {model.inputs[0].shape}", "fix every axis but the first in keras.Input"
        )
    if model.losses:
        raise UnsupportedModelError(model.name, "a regularization loss", "remove it; use proximal_mu or weight decay")
    if not model.trainable_variables:
        raise UnsupportedModelError(model.name, "a model without trainable variables", "unfreeze a layer")


def _label(model: Any, loss: bundle.Loss, batch_size: int) -> Any:
    if loss == "sparse_categorical_crossentropy":
        return tf.TensorSpec([batch_size], tf.int32, name="y")
    return tf.TensorSpec([batch_size, *model.outputs[0].shape[1:]], tf.float32, name="y")


def _without_final_activation(model: KerasModel, loss: bundle.Loss) -> Callable[..., tuple[Any, list[Any]]]:
    """Give the model as a function that leaves out the final softmax or sigmoid, which the loss contains."""
    expected = _FINAL_ACTIVATION.get(loss)
    last = model.keras.outputs[0]._keras_history.operation
    if expected is None:
        return model.call
    if not hasattr(last, "activation") or last.activation.__name__ not in ("linear", expected):
        raise UnsupportedModelError(
            last.name,
            f"this layer before {loss}",
            f"end the model with a Dense or Activation layer of activation {expected} or linear",
        )

    def logits(x: Any, values: Sequence[Any], step: Any | None) -> tuple[Any, list[Any]]:
        activation, last.activation = last.activation, keras.activations.linear
        try:
            return model.call(x, values, step)
        finally:
            last.activation = activation

    return logits


def _convert(owner: Any, signatures: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(owner, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        return without_initializer(bytes(converter.convert()))
