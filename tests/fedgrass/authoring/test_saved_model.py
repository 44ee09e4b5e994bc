"""A SavedModel trains as the model that it was saved from, but for what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.tensors import Array

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
layers = keras.layers

from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.export import export  # noqa: E402

TOLERANCE = 1e-5
LABELS = np.array([0, 1, 2, 0], np.int32)


def network() -> Any:
    """Convolutions, a Flatten over the open batch axis, an exact GELU, and two layers whose nodes have like names."""
    keras.utils.set_random_seed(0)
    body = [
        layers.Conv2D(3, 3, activation="relu"),
        layers.DepthwiseConv2D(2),
        layers.BatchNormalization(name="norm"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(6, activation="gelu"),
        layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((8, 7, 2)), *body], name="net")


def save_keras(folder: Path) -> None:
    network().export(folder, verbose=False)


def save_with_tensorflow(folder: Path) -> None:
    """A model without Keras, which gives logits by a function in a function."""
    module = tf.Module()
    module.kernel = tf.Variable(np.linspace(-1, 1, 12).reshape(4, 3).astype("f4"), name="dense/kernel")
    module.scale = tf.Variable(np.float32(2.0), name="scale")
    product = tf.function(lambda x: tf.matmul(x, module.kernel))
    served = tf.function(
        lambda x: tf.reshape(product(x) * module.scale, [tf.shape(x)[0], 3]),
        input_signature=[tf.TensorSpec([None, 4])],
    )
    tf.saved_model.save(module, str(folder), signatures=served)


def step_of_tensorflow(folder: Path, x: Array, rate: float, *, logits: bool) -> tuple[Array, float, dict[str, Array]]:
    """Output, loss, and each variable after one step by TensorFlow's own gradients of the SavedModel."""
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]
    variables = [variable for variable in function.variables if variable.trainable]
    with tf.GradientTape() as tape:
        (output,) = function(**{name: tf.constant(x)}).values()
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS, output, from_logits=logits))
    gradients = tape.gradient(loss, variables)
    moved = {
        v.name.removesuffix(":0").removeprefix("net/"): (v - rate * gradient).numpy()
        for v, gradient in zip(variables, gradients, strict=True)
    }
    return output.numpy(), float(loss), moved


@pytest.mark.parametrize(
    ("save", "statistics", "logits"),
    [(save_keras, ("norm/moving_mean", "norm/moving_variance"), False), (save_with_tensorflow, (), True)],
    ids=["keras", "tensorflow"],
)
def test_a_saved_model_infers_and_trains_as_tensorflow_would(
    tmp_path: Path, save: Callable[[Path], None], statistics: tuple[str, ...], logits: bool
) -> None:
    folder = tmp_path / "pump"
    save(folder)
    written = export(
        folder, tmp_path / "bundle", loss="sparse_categorical_crossentropy", batch_size=4, freeze=statistics
    )
    assert (written.manifest.name, written.manifest.frozen) == ("pump", statistics)
    x = np.random.default_rng(0).normal(size=(4, *written.manifest.x.shape)).astype(np.float32)
    output, loss, moved = step_of_tensorflow(folder, x, 0.1, logits=logits)
    engine = LiteRTEngine(written)
    np.testing.assert_allclose(engine.infer(x), output, atol=TOLERANCE)
    np.testing.assert_allclose(of_application(written, x), output, atol=TOLERANCE)

    result = engine.fit(ArrayDataset(x, LABELS), FitSettings(learning_rate=0.1))
    assert result.metrics["loss"] == pytest.approx(loss, abs=TOLERANCE)
    assert result.parameters.keys() == moved.keys()
    for name, value in result.parameters.items():
        np.testing.assert_allclose(value, moved[name], atol=TOLERANCE, err_msg=name)


def of_application(written: Bundle, x: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(written.path("inference.tflite"))).get_signature_runner("infer")
    return np.concatenate([runner(x=row[None])["y"] for row in x])


def save_function(folder: Path, function: Callable[[Any, Any], Any], shape: tuple[int | None, ...]) -> None:
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones([4, 3]), name="dense/kernel")
    served = tf.function(lambda x: function(x, module.kernel), input_signature=[tf.TensorSpec(shape)])
    tf.saved_model.save(module, str(folder), signatures=served)


@pytest.mark.parametrize(
    ("function", "shape", "freeze", "message"),
    [
        (lambda x, kernel: x @ kernel, (2, 4), [], "input shape .*fix every axis but the first"),
        (lambda x, kernel: x @ kernel, (None, 4), ["head"], "freezing 'head'.*choose among dense/kernel"),
        (lambda x, kernel: x @ kernel, (None, 4), ["dense"], "without trainable variables"),
        (lambda x, kernel: tf.nn.tanh(x @ kernel), (None, 4), [], "Tanh.*Tanh before .*end the model with softmax"),
        (
            lambda x, kernel: tf.while_loop(lambda y: True, tf.nn.relu, [x @ kernel], maximum_iterations=3)[0],
            (None, 4),
            [],
            "While.*unroll=True",
        ),
        (lambda x, kernel: tf.nn.selu(x @ kernel) + 1, (None, 4), [], "Selu.*operator Selu.*use elu"),
    ],
    ids=["fixed batch", "unknown layer", "all frozen", "final activation", "loop", "operator"],
)
def test_a_saved_model_that_cannot_be_trained_is_refused_with_what_to_do(
    tmp_path: Path, function: Any, shape: Any, freeze: list[str], message: str
) -> None:
    save_function(tmp_path / "pump", function, shape)
    with pytest.raises(UnsupportedModelError, match=message):
        export(
            tmp_path / "pump", tmp_path / "bundle", loss="sparse_categorical_crossentropy", batch_size=2, freeze=freeze
        )
    assert not (tmp_path / "bundle").exists()


def test_statistics_whose_part_in_training_a_saved_model_does_not_tell_are_named(tmp_path: Path) -> None:
    save_keras(tmp_path / "pump")
    with pytest.raises(
        UnsupportedModelError, match=r"norm/moving_mean: .*--freeze norm/moving_mean, or export the \.keras"
    ):
        export(tmp_path / "pump", tmp_path / "bundle", loss="sparse_categorical_crossentropy", batch_size=2)
