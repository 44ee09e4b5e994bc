"""Default architectures by task. Plain layers: nothing in them keeps statistics of its own device's data."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fedgrass.errors import ConfigurationError
from fedgrass.tensors import Array

if TYPE_CHECKING:
    from keras import KerasTensor, Layer, Model

HIDDEN = 64
MEL_BANDS = 40
_SMALLEST_MAP = 8
_FIRST_FILTERS = 16
_MOST_FILTERS = 64
_EMBEDDING = 32
_WORD_FILTERS = 64
# A frame is 5 blocks of 5 ms, one frame begins every 2: 25 ms each 10 ms, as speech recognition has it.
_BLOCKS_OF_FRAME, _BLOCKS_OF_HOP, _BLOCK_SECONDS = 5, 2, 0.005
# Added before the logarithm: digital silence has a power of 0.
_QUIETEST = 1e-6


def image(layers: ModuleType, shape: tuple[int, ...]) -> list[Layer]:
    """Convolution and pooling until the map is small: 8×8 takes one stage, 28×28 two, 96×96 four."""
    # Names are numbered by stage, so that the same shape always gives the same parameter names.
    body: list[Layer] = []
    side, filters = min(shape[:2]), _FIRST_FILTERS
    while True:
        stage = len(body) // 2
        body.append(layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{stage}"))
        # A map of one pixel cannot be pooled.
        if side < 2:
            break
        body.append(layers.MaxPooling2D(2, name=f"pool{stage}"))
        side, filters = side // 2, min(2 * filters, _MOST_FILTERS)
        if side < _SMALLEST_MAP:
            break
    return [*body, layers.Flatten(name="flatten")]


def table(layers: ModuleType, _shape: tuple[int, ...]) -> list[Layer]:
    """One dense layer, on values that `fedgrass model adapt` can scale."""
    return [layers.Normalization(name="scaling"), layers.Dense(HIDDEN, activation="relu", name="features")]


def series(layers: ModuleType, shape: tuple[int, ...]) -> list[Layer]:
    """Two strided convolutions over time, written in two dimensions, on values that `fedgrass model adapt` can scale."""
    steps, features = shape
    return [
        layers.Normalization(name="scaling"),
        layers.Reshape((steps, 1, features), name="steps"),
        layers.Conv2D(32, (5, 1), strides=(2, 1), padding="same", activation="relu", name="conv0"),
        layers.Conv2D(32, (5, 1), strides=(2, 1), padding="same", activation="relu", name="conv1"),
        layers.Flatten(name="flatten"),
    ]


def text(keras: ModuleType, length: int, words: int, classes: int) -> Model:
    """Words' vectors, a convolution over three of them, and its largest response anywhere in the text.

    Parameters
    ----------
    keras
        The module: it is imported only where a model is made.
    length
        Words of a text.
    words
        Size of the vocabulary.
    classes
        Number of classes.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((length,), dtype="int32", name="x"),
            layers.Embedding(words, _EMBEDDING, name="words"),
            layers.Conv1D(_WORD_FILTERS, min(3, length), activation="relu", name="phrases"),
            layers.GlobalMaxPooling1D(name="strongest"),
            layers.Dense(classes, activation="softmax", name="output"),
        ],
        name="model",
    )


def audio(keras: ModuleType, samples: int, rate: int, classes: int) -> Model:
    """Log-mel bands of the sound, made in the graph, and an image classifier on them.

    Parameters
    ----------
    keras
        The module: it is imported only where a model is made.
    samples
        Samples of a sound.
    rate
        Samples per second.
    classes
        Number of classes.
    """
    x = keras.Input((samples,), name="x")
    bands = log_mel(keras, x, samples, rate)
    shape = (*bands.shape[1:], 1)
    y = keras.layers.Reshape(shape, name="bands")(bands)
    for layer in image(keras.layers, shape):
        y = layer(y)
    y = keras.layers.Dense(HIDDEN, activation="relu", name="hidden")(y)
    return keras.Model(x, keras.layers.Dense(classes, activation="softmax", name="output")(y), name="model")


def log_mel(keras: ModuleType, x: KerasTensor, samples: int, rate: int) -> KerasTensor:
    """Return log-mel bands [n, frames, `MEL_BANDS`] of sound [n, samples]: frames of 25 ms, one each 10 ms, a Hann window.

    Bands are triangles on HTK's mel scale up to half of the rate; a value is ln(power + 1e-6) / 5 + 1.4, so about -1.4 to 1.4.
    The Fourier transform is a product with fixed cosines and sines: an operator that LiteRT has.

    Parameters
    ----------
    keras
        The module: it is imported only where a model is made.
    x
        The sound [n, samples], -1 to 1.
    samples
        Samples of a sound.
    rate
        Samples per second.
    """
    block = round(rate * _BLOCK_SECONDS)
    blocks = samples // block
    frames = (blocks - _BLOCKS_OF_FRAME) // _BLOCKS_OF_HOP + 1
    if frames < 1:
        raise ConfigurationError(
            f"--input-shape {samples}: at --sample-rate {rate} a sound has at least {_BLOCKS_OF_FRAME * block} samples"
        )
    layers = keras.layers
    # What does not fill a block of 5 ms at the end is dropped.
    y = layers.Reshape((blocks, block), name="blocks")(x[:, : blocks * block])
    last = (frames - 1) * _BLOCKS_OF_HOP + 1
    y = keras.ops.concatenate(
        [y[:, first : first + last : _BLOCKS_OF_HOP, :] for first in range(_BLOCKS_OF_FRAME)], axis=-1
    )
    y = _fixed(layers, "spectrum", _fourier(_BLOCKS_OF_FRAME * block))(y)
    y = keras.ops.square(y)
    y = _fixed(layers, "mel", _mel(_BLOCKS_OF_FRAME * block, rate))(y)
    return layers.Rescaling(0.2, 1.4, name="decades")(keras.ops.log(y + _QUIETEST))


def autoencoder(keras: ModuleType, shape: tuple[int, ...]) -> Model:
    """Reconstruct the input through a layer that is an eighth of it (2 to 32 wide)."""
    layers = keras.layers
    # An eighth forces the model to leave something out: an autoencoder as wide as its input would learn the identity.
    size = int(np.prod(shape))
    narrow = min(32, max(2, size // 8))
    wide = min(128, max(8, size // 2))
    return keras.Sequential(
        [
            keras.Input(shape, name="x"),
            layers.Flatten(name="flatten"),
            layers.Dense(wide, activation="relu", name="encode"),
            layers.Dense(narrow, activation="relu", name="code"),
            layers.Dense(wide, activation="relu", name="decode"),
            layers.Dense(size, name="values"),
            layers.Reshape(shape, name="output"),
        ],
        name="model",
    )


def forecaster(keras: ModuleType, shape: tuple[int, ...], horizon: int, outputs: int) -> Model:
    """Predict the next values as a linear function of the past ones plus what two convolutions over time add to it.

    Parameters
    ----------
    keras
        The module: it is imported only where a model is made.
    shape
        Steps and features of the past.
    horizon
        Steps to predict.
    outputs
        Values of each step.
    """
    layers = keras.layers
    x = keras.Input(shape, name="x")
    linear = layers.Dense(horizon * outputs, name="linear")(layers.Flatten(name="past")(x))
    y = x
    for layer in series(layers, shape):
        y = layer(y)
    y = layers.Dense(HIDDEN, activation="relu", name="hidden")(y)
    y = layers.Add(name="sum")([linear, layers.Dense(horizon * outputs, name="bend")(y)])
    return keras.Model(x, layers.Reshape((horizon, outputs), name="output")(y), name="model")


def _fixed(layers: ModuleType, name: str, weights: Array) -> Layer:
    """Return a matrix product that is not trained."""

    # The weights go in through an initializer, so the layer is built in one call.
    def initializer(shape: object, dtype: object = None) -> Array:
        del shape, dtype
        return weights

    return layers.Dense(weights.shape[1], use_bias=False, trainable=False, kernel_initializer=initializer, name=name)


def _fourier(frame: int) -> Array:
    """Cosines and sines [frame, 2 × bins] under a Hann window."""
    # The window is part of the matrix: one product instead of two.
    place = np.arange(frame)
    angles = 2 * np.pi * np.outer(place, np.arange(frame // 2 + 1)) / frame
    window = 0.5 - 0.5 * np.cos(2 * np.pi * place / frame)
    return np.asarray(window[:, None] * np.concatenate([np.cos(angles), np.sin(angles)], axis=1), np.float32)


def _mel(frame: int, rate: int) -> Array:
    """Triangles [2 × bins, bands], for the squares of cosines and of sines alike."""
    frequencies = np.arange(frame // 2 + 1) * rate / frame
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), MEL_BANDS + 2) / 2595) - 1)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    # Twice the same triangles: power is the square of the cosine's part plus that of the sine's.
    return np.asarray(np.concatenate([triangles, triangles]), np.float32)


BODIES: dict[str, Callable[[ModuleType, tuple[int, ...]], list[Layer]]] = {
    "image-classifier": image,
    "tabular-classifier": table,
    "regressor": table,
    "time-series": series,
}
