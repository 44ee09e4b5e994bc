"""Numbers to classes, as Discretization and CategoryEncoding do, without BUCKETIZE and BINCOUNT, which LiteRT lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, TypeAlias

import tensorflow as tf

Tensor: TypeAlias = tf.Tensor


def digitize(x: Tensor, bins: Sequence[float]) -> Tensor:
    """Return how many of the boundaries are at or below each value, int32; stands for Keras' ``digitize``."""
    bounds = tf.constant([float(bound) for bound in bins], tf.float32)
    values = tf.expand_dims(tf.cast(tf.convert_to_tensor(x), tf.float32), -1)
    return tf.reduce_sum(tf.cast(values >= bounds, tf.int32), axis=-1)


def not_counted(*_: object, **__: object) -> NoReturn:
    """Stand for Keras' short cut to BINCOUNT, which counts otherwise where that refuses."""
    raise ValueError("no BINCOUNT")
