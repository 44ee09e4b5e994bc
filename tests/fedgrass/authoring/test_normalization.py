"""Normalizations' own gradients are those that TensorFlow derives from the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring.normalization import normalized, normalized_groups, normalized_rows  # noqa: E402 - only where TensorFlow is

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


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (8, 7), (4, 9, 65), (200, 16), (2, 3, 3, 128)])
def test_a_layers_values_and_gradients_equal_tensorflows(shape: tuple[int, ...]) -> None:
    def reference(x: Any, scale: Any, offset: Any) -> tuple[Any]:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (tf.nn.batch_normalization(x, mean, variance, offset, scale, EPSILON),)

    _assert_equal(shape, reference, lambda x, scale, offset: (normalized_rows(x, scale, offset, EPSILON),))


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 5, 6, 3), 3), ((4, 5, 6, 12), 4), ((4, 9, 32), 1), ((3, 4, 4, 64), 8), ((5, 10), 2)]
)
def test_a_groups_values_and_gradients_equal_tensorflows(shape: tuple[int, ...], groups: int) -> None:
    def reference(x: Any, scale: Any, offset: Any) -> tuple[Any]:
        apart = tf.reshape(x, [shape[0], -1, groups, shape[-1] // groups])
        mean, variance = tf.nn.moments(apart, [1, 3], keepdims=True)
        normal = tf.reshape((apart - mean) * tf.math.rsqrt(variance + EPSILON), shape)
        return (normal * scale + offset,)

    _assert_equal(shape, reference, lambda x, s, o: (normalized_groups(x, s, o, groups, EPSILON),))


def _assert_equal(shape: tuple[int, ...], reference: Any, ours: Any) -> None:
    generator = np.random.default_rng(0)
    values = [tf.constant(generator.normal(size=size), tf.float64) for size in (shape, shape[-1:], shape[-1:])]
    found = _differentiated(ours, [tf.cast(value, tf.float32) for value in values])
    for value, wanted in zip(found, _differentiated(reference, values), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=5e-6 * max(float(np.abs(wanted).max()), 1.0))


def _differentiated(function: Any, values: list[Any]) -> list[Any]:
    with tf.GradientTape() as tape:
        tape.watch(values)
        y, *statistics = function(*values)
        total = tf.reduce_sum(tf.sin(y))
    return [y, *statistics, *tape.gradient(total, values)]
