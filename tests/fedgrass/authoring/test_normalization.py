"""Batch normalization's own gradient is the one that TensorFlow derives from the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring.normalization import normalized  # noqa: E402 - only where TensorFlow is

EPSILON = 1e-3


@pytest.mark.parametrize(
    "shape", [(4, 5, 6, 3), (8, 7), (4, 9, 32), (8, 100, 20), (2, 3, 1), (2, 4, 4, 15), (3, 2, 2, 16)]
)
def test_values_statistics_and_gradients_equal_tensorflows(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    values = [tf.constant(generator.normal(size=size), tf.float64) for size in (shape, shape[-1:], shape[-1:])]

    def reference(x: Any, scale: Any, offset: Any) -> tuple[Any, Any, Any]:
        mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, EPSILON), mean, variance

    expected = _differentiated(reference, values)
    ours = _differentiated(
        lambda x, scale, offset: normalized(x, scale, offset, EPSILON), [tf.cast(value, tf.float32) for value in values]
    )
    for found, wanted in zip(ours, expected, strict=True):
        scale = max(float(np.abs(wanted).max()), 1.0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * scale)


def _differentiated(function: Any, values: list[Any]) -> list[Any]:
    with tf.GradientTape() as tape:
        tape.watch(values)
        y, *statistics = function(*values)
        total = tf.reduce_sum(tf.sin(y))
    return [y, *statistics, *tape.gradient(total, values)]
