"""Images: classifiers, residual and mobile nets, autoencoders, segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

Build = Callable[[], Any]
SIZE = (32, 32, 3)


def _classifier(*hidden: Any, shape: tuple[int, ...] = SIZE) -> Any:
    return keras.Sequential([keras.Input(shape), *hidden, layers.Dense(10, activation="softmax")])


def _conv(filters: int, norm: Callable[[], Any], strides: int = 1) -> list[Any]:
    return [layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False), norm(), layers.ReLU()]


def _plain(norm: Callable[[], Any]) -> Any:
    blocks = [*_conv(16, norm), layers.MaxPooling2D(), *_conv(32, norm), layers.MaxPooling2D(), *_conv(64, norm)]
    return _classifier(*blocks, layers.GlobalAveragePooling2D())


def _residual() -> Any:
    inputs = keras.Input(SIZE)
    x = _chain(inputs, _conv(16, layers.BatchNormalization))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = _chain(x, [*_conv(filters, layers.BatchNormalization, strides), layers.Conv2D(filters, 3, padding="same")])
        y = layers.BatchNormalization()(y)
        x = layers.Conv2D(filters, 1, strides=strides)(x) if strides > 1 else x
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def _chain(x: Any, blocks: list[Any]) -> Any:
    for block in blocks:
        x = block(x)
    return x


def _inverted() -> Any:
    inputs = keras.Input(SIZE)
    x = _chain(inputs, _conv(16, layers.BatchNormalization, 2))
    for _ in range(3):
        y = _chain(x, [layers.Conv2D(64, 1), layers.BatchNormalization(), layers.ReLU(6.0)])
        y = _chain(y, [layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization(), layers.ReLU(6.0)])
        x = layers.Add()([x, _chain(y, [layers.Conv2D(16, 1), layers.BatchNormalization()])])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def _dense_blocks() -> Any:
    inputs = keras.Input(SIZE)
    x = layers.Conv2D(16, 3, strides=2, padding="same")(inputs)
    for _ in range(3):
        y = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def _squeeze() -> Any:
    inputs = keras.Input(SIZE)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    for filters in (16, 32):
        narrow = layers.Conv2D(filters // 2, 1, activation="relu")(x)
        wide = layers.Conv2D(filters, 3, padding="same", activation="relu")(narrow)
        x = layers.Concatenate()([layers.Conv2D(filters, 1, activation="relu")(narrow), wide])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def _gated() -> Any:
    inputs = keras.Input(SIZE)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="swish")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="relu")(gate))
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate]))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def _u_net() -> Any:
    inputs = keras.Input(SIZE)
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    low = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    joined = layers.Concatenate()([layers.UpSampling2D()(low), first])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(joined)
    return keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(x))


def _autoencoder(*decoder: Any) -> Any:
    encoder = [layers.Conv2D(f, 3, strides=2, padding="same", activation="relu") for f in (8, 4)]
    return keras.Sequential([keras.Input((28, 28, 1)), *encoder, *decoder, layers.Conv2D(1, 3, padding="same")])


def _patches() -> Any:
    inputs = keras.Input(SIZE)
    x = layers.Reshape((64, 24))(layers.Conv2D(24, 4, strides=4)(inputs))
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 12)(x, x)]))
    x = layers.Add()([x, layers.Dense(24)(layers.Dense(48, activation="gelu")(x))])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


MODELS: dict[str, Build] = {
    "lenet": lambda: _classifier(
        layers.Conv2D(6, 5, activation="tanh"),
        layers.AveragePooling2D(2),
        layers.Conv2D(16, 5, activation="tanh"),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(120, activation="tanh"),
    ),
    "digits_cnn": lambda: _classifier(
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.5),
        shape=(28, 28, 1),
    ),
    "plain_batch_norm": lambda: _plain(layers.BatchNormalization),
    "plain_group_norm": lambda: _plain(lambda: layers.GroupNormalization(4)),
    "plain_layer_norm": lambda: _plain(layers.LayerNormalization),
    "resnet_small": _residual,
    "inverted_residual": _inverted,
    "densely_connected": _dense_blocks,
    "squeeze": _squeeze,
    "squeeze_excite": _gated,
    "separable": lambda: _classifier(
        layers.SeparableConv2D(16, 3, strides=2, activation="relu"),
        layers.SeparableConv2D(32, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
    ),
    "u_net": _u_net,
    "autoencoder_upsampling": lambda: _autoencoder(layers.UpSampling2D(), layers.UpSampling2D()),
    "autoencoder_transposed": lambda: _autoencoder(
        *(layers.Conv2DTranspose(f, 3, strides=2, padding="same", activation="relu") for f in (4, 8))
    ),
    "vision_transformer": _patches,
    "dilated": lambda: _classifier(
        layers.Conv2D(8, 3, dilation_rate=2, activation="relu"), layers.GlobalMaxPooling2D()
    ),
    "augmented": lambda: _classifier(
        layers.RandomFlip(), layers.Conv2D(8, 3, strides=2, activation="relu"), layers.GlobalAveragePooling2D()
    ),
}
