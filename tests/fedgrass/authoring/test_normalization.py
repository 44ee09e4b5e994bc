"""Normalizations' own gradients are those that TensorFlow derives from the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from ai_edge_litert.interpreter import Interpreter  # noqa: E402 - beside TensorFlow

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


def test_litert_sums_thousands_of_pixels_as_precisely_as_tensorflow(tmp_path: Path) -> None:
    # XNNPACK adds row by row: at a mean of 2 a plain sum is wrong by 2e-6 of y, and by 1e-4 of the scale's gradient.
    generator, shape = np.random.default_rng(0), (8, 32, 32, 16)
    x, dy = generator.normal(2, 1, shape), generator.normal(0.3, 1, shape)
    given = tf.TensorSpec(shape)
    module = tf.Module()
    ones, zeros = tf.ones([16]), tf.zeros([16])

    def both(x: Any, dy: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            tape.watch([x, ones])
            y, *_ = normalized(x, ones, zeros, EPSILON)
        by_x, by_scale = tape.gradient(y, [x, ones], output_gradients=dy)
        return {"y": y, "by_x": by_x, "by_scale": by_scale}

    module.both = tf.function(both, input_signature=[given, given])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(tmp_path), signatures=module.both.get_concrete_function(), options=options)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert()
    runner = Interpreter(model_content=converted, num_threads=1).get_signature_runner()
    found = runner(x=x.astype(np.float32), dy=dy.astype(np.float32))

    inverse = 1 / np.sqrt(x.var((0, 1, 2)) + EPSILON)
    y = (x - x.mean((0, 1, 2))) * inverse
    by_scale = (dy * y).sum((0, 1, 2))
    by_x = inverse * (dy - dy.mean((0, 1, 2)) - y * by_scale / (x.size / 16))
    for name, wanted in {"y": y, "by_x": by_x, "by_scale": by_scale}.items():
        limit = 1e-5 if name == "by_scale" else 8e-7
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=limit * np.abs(wanted).max(), err_msg=name)


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
