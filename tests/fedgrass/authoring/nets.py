"""Models of every layer, activation and loss that authoring offers, and how far one step of ours is from TensorFlow's.

Many layers share a model, as branches, because each export costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from fedgrass import bundle
from fedgrass.authoring.export import export
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.tensors import Array

BATCH = 4
CLASSES = 3
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "softmax", "gelu", "swish")

REFERENCE: dict[bundle.Loss, Callable[[Any, Any], Any]] = {
    "sparse_categorical_crossentropy": keras.losses.sparse_categorical_crossentropy,
    "categorical_crossentropy": keras.losses.categorical_crossentropy,
    "binary_crossentropy": keras.losses.binary_crossentropy,
    "mean_squared_error": keras.losses.mean_squared_error,
    "mean_absolute_error": keras.losses.mean_absolute_error,
    "huber": keras.losses.huber,
    "mean_absolute_percentage_error": keras.losses.mean_absolute_percentage_error,
    "mean_squared_logarithmic_error": keras.losses.mean_squared_logarithmic_error,
    "log_cosh": keras.losses.log_cosh,
    "poisson": keras.losses.poisson,
    "kl_divergence": keras.losses.kl_divergence,
    "hinge": keras.losses.hinge,
    "squared_hinge": keras.losses.squared_hinge,
    "categorical_hinge": keras.losses.categorical_hinge,
    "cosine_similarity": keras.losses.cosine_similarity,
    "binary_focal_crossentropy": keras.losses.binary_focal_crossentropy,
    "categorical_focal_crossentropy": keras.losses.categorical_focal_crossentropy,
}


def network(shape: Sequence[int], *hidden: Any, activation: str = "softmax", units: int = CLASSES) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(shape), *hidden, layers.Flatten(), layers.Dense(units, activation=activation)]
    )
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:  # biases too must not be zero
        variable.assign(generator.normal(0, 0.3, variable.shape))
    return model


def for_loss(loss: bundle.Loss) -> Any:
    """A small net whose outputs suit the loss."""
    activation = "linear"
    if loss.endswith("crossentropy"):
        activation = "sigmoid" if loss.startswith("binary") else "softmax"
    elif loss in ("poisson", "mean_squared_logarithmic_error", "kl_divergence"):
        activation = "softplus" if loss != "kl_divergence" else "softmax"
    return network((5,), layers.Dense(6, activation="relu"), activation=activation)


def examples(model: Any, loss: bundle.Loss, count: int) -> ArrayDataset:
    generator = np.random.default_rng(1)
    shape = (count, *model.input_shape[1:])
    whole = model.inputs[0].dtype == "int32"
    x: Array = generator.integers(0, 7, shape).astype(np.int32) if whole else generator.normal(size=shape).astype("f4")
    labels = generator.integers(0, CLASSES, count)
    y: Array
    if loss == "sparse_categorical_crossentropy":
        y = labels.astype(np.int32)
    elif loss.startswith("categorical"):
        y = np.eye(CLASSES, dtype=np.float32)[labels]
    elif loss.startswith("binary") or loss.endswith("hinge"):
        y = generator.integers(0, 2, (count, model.output_shape[-1])).astype(np.float32)
    elif loss in ("poisson", "mean_squared_logarithmic_error"):
        y = generator.integers(0, 5, (count, model.output_shape[-1])).astype(np.float32)
    elif loss == "kl_divergence":
        y = generator.dirichlet(np.ones(model.output_shape[-1]), count).astype(np.float32)
    else:
        y = generator.normal(0, 2, (count, model.output_shape[-1])).astype(np.float32)
    return ArrayDataset(x, y)


def with_head(inputs: Any, branches: list[Any]) -> Any:
    flat = [layers.Flatten()(branch) for branch in branches]
    joined = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(joined), name="net")
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0, 0.3 if joined.shape[1] < 200 else 0.1, variable.shape))
    return model


def images() -> Any:
    """Every layer for images behind one convolution, so that its gradient by its input counts."""
    inputs = keras.Input((9, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    branches = [
        layer(x)
        for layer in (
            layers.Conv2D(5, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(18, (3, 2), padding="valid"),
            layers.Conv2D(3, 2, strides=(3, 1), padding="same"),
            layers.Conv2D(3, 1, strides=2),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.DepthwiseConv2D((2, 3), strides=2, depth_multiplier=2),
            layers.SeparableConv2D(5, 3, strides=2, padding="same"),
            layers.MaxPooling2D(2),
            layers.MaxPooling2D(3, strides=2, padding="same"),
            layers.MaxPooling2D((2, 3), strides=(3, 1)),
            layers.AveragePooling2D(2),
            layers.AveragePooling2D(3, strides=2, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.BatchNormalization(momentum=0.7),
            layers.LayerNormalization(),
            layers.GroupNormalization(2),
            layers.Reshape((6, 48)),
            layers.UpSampling2D((2, 3)),
            layers.Cropping2D(((1, 0), (2, 1))),
            layers.ZeroPadding2D((1, 2)),
            layers.GlobalMaxPooling2D(),
        )
    ]
    residual = layers.Add()([x, layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    return with_head(inputs, [*branches, residual])


def sequences() -> Any:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 6)(inputs)
    convolved = layers.Conv1D(6, 3, padding="same", activation="relu")(x)
    decoded = layers.Conv1D(2, 3)(layers.UpSampling1D(2)(layers.RepeatVector(3)(layers.SimpleRNN(3)(x))))
    cells = [
        decoded,
        layers.SimpleRNN(3)(x),
        layers.GRU(3, return_sequences=True)(convolved),
        layers.LSTM(3)(convolved),
        layers.LSTM(3, go_backwards=True)(x),
        layers.Conv1D(3, 2, strides=2)(x),
    ]
    return with_head(inputs, cells)


def activations() -> Any:
    inputs = keras.Input((6,))
    branches = [layers.Dense(4, activation=name)(inputs) for name in ACTIVATIONS]
    second = [layers.Dense(3, activation=name)(branch) for name, branch in zip(ACTIVATIONS, branches, strict=True)]
    return with_head(inputs, [*second, layers.LeakyReLU(negative_slope=0.3)(branches[0])])


def one_step(model: Any, loss: bundle.Loss, folder: Path) -> dict[str, float]:
    """Export ``model``, train one step with LiteRT and one with TensorFlow; largest differences by what was compared."""
    data = examples(model, loss, BATCH)
    written = export(model, folder, loss=loss, batch_size=BATCH, prove=False)
    engine = LiteRTEngine(written)
    expected = model.predict(data.x, verbose=0)
    found = {
        "output": _difference(engine.infer(data.x), expected),
        "output of the application's model": _difference(application(written, data.x), expected),
    }
    result = engine.fit(data, FitSettings(learning_rate=0.1))
    found["loss"] = _difference(result.metrics["loss"], _step_of_tensorflow(model, loss, data, 0.1))
    moved = {variable.path.removeprefix(f"{model.name}/"): variable.numpy() for variable in model.weights}
    assert moved.keys() == result.parameters.keys()
    return found | {name: _difference(value, moved[name]) for name, value in result.parameters.items()}


def application(written: bundle.Bundle, x: Array) -> Array:
    """Output of the application's model, one example at a time."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(written.path(bundle.INFERENCE))).get_signature_runner("infer")
    return np.concatenate([runner(x=row[None])["y"] for row in x])


def _step_of_tensorflow(model: Any, loss: bundle.Loss, data: ArrayDataset, rate: float) -> float:
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(REFERENCE[loss](data.y, model(data.x, training=True)))
    for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
        variable.assign_sub(rate * tf.convert_to_tensor(gradient))
    return float(value)


def _difference(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))
