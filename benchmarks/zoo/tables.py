"""Tables and vectors: dense nets and autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

Build = Callable[[], Any]


def _classifier(*hidden: Any, features: int = 20) -> Any:
    return keras.Sequential([keras.Input((features,)), *hidden, layers.Dense(5, activation="softmax")])


def _regressor(*hidden: Any) -> Any:
    return keras.Sequential([keras.Input((13,)), *hidden, layers.Dense(1)])


def _autoencoder(*sizes: int) -> Any:
    hidden = [layers.Dense(size, activation="relu") for size in sizes]
    return keras.Sequential([keras.Input((32,)), *hidden, layers.Dense(32)])


def _residual() -> Any:
    inputs = keras.Input((20,))
    x = layers.Dense(32)(inputs)
    for _ in range(2):
        x = layers.Add()([x, layers.Dense(32, activation="relu")(layers.LayerNormalization()(x))])
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def _wide_and_deep() -> Any:
    inputs = keras.Input((20,))
    deep = layers.Dense(16, activation="relu")(layers.Dense(32, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(layers.Concatenate()([inputs, deep])))


def _with(activation: str) -> Build:
    return lambda: _classifier(layers.Dense(32, activation=activation), layers.Dense(32, activation=activation))


_ACTIVATIONS = ("relu", "tanh", "gelu", "swish", "elu", "leaky_relu", "sigmoid")

MODELS: dict[str, Build] = {
    "logistic": lambda: _classifier(),
    "digits_mlp": lambda: _classifier(layers.Dense(128, activation="relu"), features=784),
    "deep_mlp": lambda: _classifier(*(layers.Dense(64, activation="relu") for _ in range(4))),
    "mlp_batch_norm": lambda: _classifier(layers.Dense(64), layers.BatchNormalization(), layers.ReLU()),
    "mlp_layer_norm": lambda: _classifier(layers.Dense(64), layers.LayerNormalization(), layers.ReLU()),
    "mlp_dropout": lambda: _classifier(layers.Dense(64, activation="relu"), layers.Dropout(0.3)),
    "mlp_noise": lambda: _classifier(layers.GaussianNoise(0.1), layers.Dense(64, activation="relu")),
    "linear_regression": lambda: _regressor(),
    "regression_mlp": lambda: _regressor(layers.Dense(64, activation="relu"), layers.Dense(64, activation="relu")),
    "anomaly_autoencoder": lambda: _autoencoder(16, 8, 16),
    "deep_autoencoder": lambda: _autoencoder(24, 16, 8, 16, 24),
    "residual_mlp": _residual,
    "wide_and_deep": _wide_and_deep,
    **{f"mlp_{name}": _with(name) for name in _ACTIVATIONS},
}
