"""Networks of `keras.applications`, trained whole and as a frozen base below a dense layer, on small images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import layers

Build = Callable[[], Any]
CLASSES = 5

_NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mobilenet": ("MobileNet", 64, {"alpha": 0.25}),
    "mobilenet_v2": ("MobileNetV2", 64, {"alpha": 0.35}),
    "mobilenet_v3_small": ("MobileNetV3Small", 64, {}),
    "efficientnet_b0": ("EfficientNetB0", 48, {}),
    "xception": ("Xception", 71, {}),
    "resnet50": ("ResNet50", 32, {}),
}
"""Class, size of an image (Xception's least is 71), options."""


def _network(kind: str, size: int, options: dict[str, Any], *, trains: bool) -> Any:
    shape = (size, size, 3)
    build = getattr(keras.applications, kind)
    base = build(input_shape=shape, include_top=False, weights=None, pooling="avg", **options)
    base.trainable = trains
    return keras.Sequential([keras.Input(shape), base, layers.Dense(CLASSES, activation="softmax")])


MODELS: dict[str, Build] = {
    f"{name}_{how}": partial(_network, *given, trains=how == "whole")
    for name, given in _NETWORKS.items()
    for how in ("whole", "frozen")
}
