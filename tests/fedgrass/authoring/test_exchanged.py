"""What LiteRT lacks is made of operators that it has, with TensorFlow's own values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from fedgrass.authoring import exchanged  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.gradients import gradients, overridden  # noqa: E402
from fedgrass.authoring.graph import _CONVERTIBLE  # noqa: E402

SHAPE = (3, 4, 5)
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "rolled": lambda x: keras.ops.roll(x, 2, axis=1),
    "rolled back and around": lambda x: keras.ops.roll(x, (-1, 7), axis=(1, -1)),
    "rolled as one": lambda x: keras.ops.roll(x, 3),
    "log of a sum": lambda x: keras.ops.logsumexp(x),
    "log of sums": lambda x: keras.ops.logsumexp(100 * x, axis=-1, keepdims=True),
    "log of sums of two axes": lambda x: keras.ops.logsumexp(x, axis=(0, 2)),
    "reflected": lambda x: tf.pad(x, [[0, 0], [3, 1], [2, 4]], "REFLECT"),
    "mirrored": lambda x: tf.pad(x, [[1, 3], [4, 0], [0, 0]], "SYMMETRIC"),
    "taken": lambda x: keras.ops.take(x, [4, 1, 4], axis=2),
    "taken by a table": lambda x: keras.ops.take(x, [[0, 3], [1, 1]], axis=1),
    "taken by each example": lambda x: tf.gather(x, [[0, 3], [1, 1], [2, 0]], axis=1, batch_dims=1),
    "taken by each of two axes": lambda x: tf.gather(x, np.arange(24).reshape(3, 4, 2) % 5, axis=2, batch_dims=2),
    "softmax of another axis": lambda x: tf.nn.softmax(x, axis=1),
    "turned by what is computed": lambda x: tf.transpose(x, tf.range(2, -1, -1)),
    "in classes": lambda x: x * tf.cast(keras.ops.digitize(x, [-1.0, 0.0, 0.5]), tf.float32),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_tensorflows(name: str) -> None:
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session, ExitStack() as stack:
        given = tf.compat.v1.placeholder(tf.float32, SHAPE)
        stack.enter_context(exchanged.for_training())
        stack.enter_context(overridden())
        y = FUNCTIONS[name](given)
        (by_x,) = gradients([y], [given], [tf.cos(y)])
        lacking = {op.type for op in graph.get_operations()} - _CONVERTIBLE
        found = session.run([y, by_x], {given: x})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = tf.compat.v1.placeholder(tf.float32, SHAPE)
        y = FUNCTIONS[name](given)
        expected = session.run([y, tf.gradients(y, given, tf.cos(y))[0]], {given: x})
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))
    assert not lacking


def test_the_log_of_a_sum_of_nothing_is_minus_infinity() -> None:
    with exchanged.for_training():
        assert keras.ops.logsumexp(tf.fill([2], -np.inf)).numpy() == -np.inf


@pytest.mark.parametrize("mode", ["multi_hot", "count", "one_hot"])
def test_classes_are_encoded_as_keras_encodes_them(mode: str) -> None:
    layer, x = keras.layers.CategoryEncoding(4, output_mode=mode), np.array([[3, 1], [1, 1]], np.int32)
    expected = layer(x).numpy()
    with exchanged.for_inference():
        np.testing.assert_array_equal(layer(x).numpy(), expected)
