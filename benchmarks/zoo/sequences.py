"""Time series and text: recurrent, convolutional and attention nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

Build = Callable[[], Any]


def _classifier(shape: tuple[int, ...], *hidden: Any, classes: int = 4, tokens: bool = False) -> Any:
    inputs = keras.Input(shape, dtype="int32" if tokens else "float32")
    return keras.Sequential([inputs, *hidden, layers.Dense(classes, activation="softmax")])


def _lstm_autoencoder() -> Any:
    return keras.Sequential(
        [
            keras.Input((30, 3)),
            layers.LSTM(16),
            layers.RepeatVector(30),
            layers.LSTM(16, return_sequences=True),
            layers.TimeDistributed(layers.Dense(3)),
        ]
    )


def _dilated() -> Any:
    inputs = x = keras.Input((128, 4))
    for rate in (1, 2, 4):
        y = layers.Conv1D(16, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        x = layers.Add()([layers.Conv1D(16, 1)(x), y])
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def _encoder(inputs: Any, x: Any, width: int) -> Any:
    attended = layers.MultiHeadAttention(2, width // 2)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    wide = layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, wide]))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def _transformer() -> Any:
    inputs = keras.Input((32, 8))
    return _encoder(inputs, layers.Dense(16)(inputs), 16)


def _text_transformer() -> Any:
    inputs = keras.Input((40,), dtype="int32")
    return _encoder(inputs, layers.Embedding(500, 16)(inputs), 16)


def _fcn() -> Any:
    blocks: list[Any] = []
    for _ in range(3):
        blocks += [layers.Conv1D(64, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
    return _classifier((500, 1), *blocks, layers.GlobalAveragePooling1D())


def _conv_norm() -> Any:
    return _classifier(
        (128, 6), layers.Conv1D(32, 5), layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling1D()
    )


def _activity() -> Any:
    return _classifier(
        (128, 9),
        layers.Conv1D(64, 3, activation="relu"),
        layers.Conv1D(64, 3, activation="relu"),
        layers.MaxPooling1D(2),
        layers.Flatten(),
        layers.Dense(100, activation="relu"),
    )


MODELS: dict[str, Build] = {
    "activity_cnn": _activity,
    "fcn_500": _fcn,
    "conv1d_norm": _conv_norm,
    "dilated_causal": _dilated,
    "conv1d_autoencoder": lambda: keras.Sequential(
        [
            keras.Input((64, 2)),
            layers.Conv1D(16, 5, strides=2, padding="same", activation="relu"),
            layers.Conv1D(8, 5, padding="same", activation="relu"),
            layers.UpSampling1D(2),
            layers.Conv1D(2, 5, padding="same"),
        ]
    ),
    "lstm_autoencoder": _lstm_autoencoder,
    "simple_rnn_20": lambda: _classifier((20, 4), layers.SimpleRNN(32)),
    "lstm_500": lambda: _classifier((500, 8), layers.LSTM(64)),
    "two_lstms_100": lambda: _classifier((100, 8), layers.LSTM(64, return_sequences=True), layers.LSTM(32)),
    "gru_120": lambda: _classifier((120, 6), layers.GRU(48)),
    "gru_reset_before_60": lambda: _classifier((60, 6), layers.GRU(32, reset_after=False)),
    "bidirectional_lstm_60": lambda: _classifier((60, 6), layers.Bidirectional(layers.LSTM(24))),
    "masked_lstm_50": lambda: _classifier((50, 4), layers.Masking(), layers.LSTM(32)),
    "stacked_cells_40": lambda: _classifier((40, 4), layers.RNN([layers.LSTMCell(16), layers.GRUCell(16)])),
    "recurrent_dropout_40": lambda: _classifier((40, 4), layers.LSTM(24, dropout=0.1, recurrent_dropout=0.1)),
    "conv_lstm_10": lambda: _classifier((10, 12, 12, 1), layers.ConvLSTM2D(4, 3), layers.Flatten()),
    "conv_then_lstm": lambda: _classifier((100, 6), layers.Conv1D(32, 5, activation="relu"), layers.LSTM(32)),
    "text_average": lambda: _classifier(
        (60,), layers.Embedding(1000, 16), layers.GlobalAveragePooling1D(), layers.Dense(16, "relu"), tokens=True
    ),
    "text_conv": lambda: _classifier(
        (60,),
        layers.Embedding(1000, 16),
        layers.Conv1D(32, 5, padding="same"),
        layers.GlobalMaxPooling1D(),
        tokens=True,
    ),
    "text_masked_lstm": lambda: _classifier(
        (40,), layers.Embedding(1000, 16, mask_zero=True), layers.LSTM(32), tokens=True
    ),
    "text_bidirectional_gru": lambda: _classifier(
        (40,), layers.Embedding(1000, 16), layers.Bidirectional(layers.GRU(16)), tokens=True
    ),
    "transformer_32": _transformer,
    "text_transformer": _text_transformer,
    "forecast_lstm": lambda: keras.Sequential([keras.Input((48, 3)), layers.LSTM(32), layers.Dense(12)]),
    "forecast_dense": lambda: keras.Sequential(
        [keras.Input((48, 3)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(12)]
    ),
}
