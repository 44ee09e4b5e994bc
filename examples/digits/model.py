"""A small convolutional net for scikit-learn's handwritten digits (8×8 pixels, scaled to 0..1)."""

from __future__ import annotations

from typing import Any

import keras


def build_model() -> Any:
    """Return the untrained model; the same weights each time."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ],
        name="digits",
    )
