"""Ten steps of families of nets on the device equal Keras' own, with the same masks and noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
layers = keras.layers

from fedgrass.authoring.export import export  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.model import frozen  # noqa: E402
from fedgrass.authoring.reference import KerasReference  # noqa: E402

STEPS, BATCH = 10, 2
ACTIVATIONS = (
    "celu log_sigmoid mish selu softplus softsign hard_shrink hard_sigmoid hard_silu hard_tanh exponential "
    "log_softmax soft_shrink sparse_plus sparse_sigmoid squareplus tanh_shrink"
)


def joined(x: Any, branches: list[Any], units: int = 2) -> Any:
    return keras.Model(x, layers.Dense(units)(layers.Concatenate()([layers.Flatten()(branch) for branch in branches])))


def activations() -> Any:
    x = keras.Input((6,))
    hidden = layers.Dense(4)(x)
    return joined(x, [layers.Dense(3)(layers.Activation(name)(hidden)) for name in ACTIVATIONS.split()])


def sequences() -> Any:
    """What a TCN and a one-dimensional autoencoder consist of."""
    x = keras.Input((12, 4))
    first = layers.Conv1D(4, 3, padding="causal")(x)
    return joined(
        x,
        [
            layer(first)
            for layer in (
                layers.Conv1D(3, 3, dilation_rate=4, padding="causal"),
                layers.Conv1D(4, 3, groups=2, padding="same"),
                layers.Conv1DTranspose(3, 3, strides=2, padding="same"),
                layers.Conv1DTranspose(3, 4, strides=3),
            )
        ],
    )


def images() -> Any:
    """What segmentation nets and image autoencoders consist of."""
    x = keras.Input((6, 7, 4))
    first = layers.Conv2D(4, 3, padding="same")(x)
    return joined(
        x,
        [
            layer(first)
            for layer in (
                layers.Conv2D(3, 3, dilation_rate=2, padding="same"),
                layers.DepthwiseConv2D(3, dilation_rate=2, padding="same"),
                layers.Conv2D(4, 3, groups=2, strides=2),
                layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
                layers.Conv2DTranspose(3, (2, 3), strides=(3, 2)),
                layers.UpSampling2D(2, interpolation="bilinear"),
                layers.Resizing(5, 6),
            )
        ],
    )


def attention() -> Any:
    """What transformers and pooling by attention consist of."""
    x = keras.Input((6, 8))
    other = layers.Dense(8)(x)[:, :4]
    normed = layers.LayerNormalization()(x)
    scores = layers.Softmax(axis=1)(layers.Dense(1)(x))
    return joined(
        x,
        [
            layers.MultiHeadAttention(2, 3)(x, x),
            layers.MultiHeadAttention(2, 3, value_dim=5, dropout=0.2)(normed, other, use_causal_mask=True),
            layers.GroupQueryAttention(4, 4, 2)(x, other),
            layers.Attention(use_scale=True)([x, other]),
            layers.AdditiveAttention()([x, other]),
            layers.EinsumDense("abc,cd->adb", output_shape=(5, 6))(x),
            layers.Dot(1)([scores, x]),
            keras.ops.take(x, [4, 1, 4], axis=2),
        ],
    )


def randomness() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomContrast(0.2),
            layers.GaussianNoise(0.1),
            layers.Conv2D(3, 3),
            layers.SpatialDropout2D(0.3),
            layers.GaussianDropout(0.2),
            layers.Flatten(),
            layers.AlphaDropout(0.2),
            layers.Dense(2),
        ]
    )


class EachAddsLoss(layers.Layer):  # type: ignore[misc, name-defined]
    """Adds a loss for each example."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x), axis=(1, 2)))
        return x


def penalties() -> Any:
    hidden = layers.Dense(
        6, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2",
        kernel_constraint=keras.constraints.MaxNorm(0.5),
    )  # fmt: skip
    head = layers.Dense(
        2, kernel_constraint="non_neg", kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.1, mode="columns")
    )
    model = keras.Sequential([keras.Input((4, 5)), hidden, EachAddsLoss(), head])
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 8, warmup_target=0.05, warmup_steps=2)
    model.compile(keras.optimizers.AdamW(schedule, clipnorm=0.5), keras.losses.Huber(delta=0.5))
    return model


def per_step_labels() -> Any:
    """A label for each step, of which a mask lets some count: as many steps as examples, lest a broadcast go unseen."""
    x = keras.Input((BATCH,), dtype="int32")
    hidden = layers.Embedding(7, 4, mask_zero=True)(x)
    model = keras.Model(x, layers.Dense(3, activation="softmax")(hidden))
    model.compile("rmsprop", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("build", [activations, sequences, images, attention, randomness, penalties, per_step_labels])
def test_ten_steps_equal_keras(tmp_path: Path, build: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model = build()
    loss = None if model.compiled else "mean_squared_error"
    written = export(model, tmp_path, loss=loss, batch_size=BATCH, prove=False)
    generator = np.random.default_rng(2)
    shape, manifest = (STEPS * BATCH, *written.manifest.x.shape), written.manifest
    if manifest.x.dtype == "int32":
        x = generator.integers(1, 7, shape).astype(np.int32)
        x[::3, 1:] = 0
    else:
        x = generator.normal(size=shape).astype(np.float32)
    y = generator.integers(0, 2, (STEPS * BATCH, *manifest.y.shape)).astype(manifest.y.dtype)
    data, settings = ArrayDataset(x, y), FitSettings(learning_rate=min(manifest.optimizer.rate, 0.001))
    with frozen(model, ()) as source:
        expected = KerasReference(source, manifest.heads, manifest.optimizer, BATCH).steps(data, settings)
    found = LiteRTEngine(written).fit(data, settings)
    assert found.metrics["loss"] == pytest.approx(np.mean(expected.losses[:-1]), rel=1e-5, abs=1e-6)
    for name, value in expected.parameters.items():
        np.testing.assert_allclose(
            found.parameters[name], value, rtol=0, atol=1e-4 * max(float(np.abs(value).max()), 1e-2), err_msg=name
        )
