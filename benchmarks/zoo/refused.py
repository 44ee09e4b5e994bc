"""Keras models that cannot be trained on a device: what `fedgrass.export` would be called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

Build = Callable[[], dict[str, Any]]


def _net(*hidden: Any, shape: tuple[int | None, ...] = (8,), loss: Any = "mse", **others: Any) -> dict[str, Any]:
    return {"model": keras.Sequential([keras.Input(shape), *hidden]), "loss": loss, **others}


def _stateful() -> dict[str, Any]:
    inputs = keras.Input(batch_shape=(16, 10, 4))
    return {"model": keras.Model(inputs, layers.LSTM(8, stateful=True)(inputs)), "loss": "mse"}


def _texts() -> dict[str, Any]:
    words = layers.TextVectorization(output_sequence_length=8, vocabulary=["good", "bad"])
    inputs = keras.Input((), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(4, 8)(words(inputs)))
    return {"model": keras.Model(inputs, layers.Dense(2)(x)), "loss": "mse"}


def _quantized() -> dict[str, Any]:
    found = _net(layers.Dense(16), layers.Dense(2))
    found["model"].quantize("int8")
    return found


def _frozen() -> dict[str, Any]:
    found = _net(layers.Dense(2))
    found["model"].trainable = False
    return found


def _without_loss() -> dict[str, Any]:
    return _net(layers.Dense(2), loss=None)


def _own_loss(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 1.5)


MODELS: dict[str, Build] = {
    "open_length": lambda: _net(layers.LSTM(8), layers.Dense(2), shape=(None, 4)),
    "stateful_lstm": _stateful,
    "mixed_float16": lambda: _net(layers.Dense(8, dtype="mixed_float16"), layers.Dense(2)),
    "float64": lambda: _net(layers.Dense(8, dtype="float64"), layers.Dense(2)),
    "quantized": _quantized,
    "all_frozen": _frozen,
    "spectral_normalization": lambda: _net(layers.SpectralNormalization(layers.Dense(8)), layers.Dense(2)),
    "sparsemax": lambda: _net(layers.Dense(8, activation="sparsemax"), layers.Dense(2)),
    "conv3d": lambda: _net(layers.Conv3D(4, 3), layers.Flatten(), layers.Dense(2), shape=(6, 6, 6, 1)),
    "pooling3d": lambda: _net(layers.MaxPooling3D(2), layers.Flatten(), layers.Dense(2), shape=(6, 6, 6, 1)),
    "fft": lambda: _net(layers.Dense(8), layers.Lambda(lambda x: keras.ops.rfft(x)[0]), layers.Dense(2)),
    "text_vectorization": _texts,
    "own_loss": lambda: _net(layers.Dense(2), loss=_own_loss),
    "without_loss": _without_loss,
    "moving_average_of_weights": lambda: _net(layers.Dense(2), optimizer=keras.optimizers.SGD(0.1, use_ema=True)),
    "gradient_accumulation": lambda: _net(
        layers.Dense(2), optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    ),
    "nadam": lambda: _net(layers.Dense(2), optimizer=keras.optimizers.Nadam()),
    "ftrl": lambda: _net(layers.Dense(2), optimizer="ftrl"),
    "cross_entropy_after_relu": lambda: _net(
        layers.Dense(4, activation="relu"), loss="sparse_categorical_crossentropy"
    ),
}
