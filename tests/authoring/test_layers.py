"""One training step of every layer and activation that authoring offers equals TensorFlow's.

Many layers share a model, as branches, because each export costs seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.tensors import Array

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
layers = keras.layers

from authoring.export import export  # noqa: E402 - only where TensorFlow is

BATCH = 4
TOLERANCE = 1e-5
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "softmax", "gelu", "swish")


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
            layers.Reshape((6, 48)),
        )
    ]
    residual = layers.Add()([x, layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    return with_head(inputs, [*branches, residual])


def sequences() -> Any:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 6)(inputs)
    convolved = layers.Conv1D(6, 3, padding="same", activation="relu")(x)
    cells = [
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


def examples(model: Any, count: int) -> ArrayDataset:
    generator = np.random.default_rng(1)
    shape = (count, *model.input_shape[1:])
    whole = model.inputs[0].dtype == "int32"
    x: Array = generator.integers(0, 7, shape).astype(np.int32) if whole else generator.normal(size=shape).astype("f4")
    return ArrayDataset(x, generator.integers(0, 3, count).astype(np.int32))


def step_of_tensorflow(model: Any, data: ArrayDataset, rate: float) -> float:
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        output = model(data.x, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(data.y, output))
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(rate * tf.convert_to_tensor(gradient))
    return float(loss)


@pytest.mark.parametrize("build", [images, sequences, activations], ids=lambda build: build.__name__)
def test_one_step_of_every_layer_equals_tensorflows(tmp_path: Path, build: Any) -> None:
    keras.utils.set_random_seed(0)
    model = build()
    data = examples(model, BATCH)
    written = export(model, tmp_path, loss="sparse_categorical_crossentropy", batch_size=BATCH)
    engine = LiteRTEngine(written)
    np.testing.assert_allclose(engine.infer(data.x), model.predict(data.x, verbose=0), atol=TOLERANCE)
    np.testing.assert_allclose(application(written, data.x), model.predict(data.x, verbose=0), atol=TOLERANCE)

    result = engine.fit(data, FitSettings(learning_rate=0.1))
    expected = step_of_tensorflow(model, data, 0.1)
    assert result.metrics["loss"] == pytest.approx(expected, abs=TOLERANCE)
    moved = {variable.path.removeprefix("net/"): variable.numpy() for variable in model.weights}
    assert moved.keys() == result.parameters.keys()
    for name, value in result.parameters.items():
        np.testing.assert_allclose(value, moved[name], atol=TOLERANCE, err_msg=name)


def application(written: bundle.Bundle, x: Array) -> Array:
    """Output of the application's model, one example at a time."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(written.path(bundle.INFERENCE))).get_signature_runner("infer")
    return np.concatenate([runner(x=row[None])["y"] for row in x])
