"""Sums and broadcasts of any number of axes equal NumPy's, and are made of few axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring import broadcasts  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.gradients import gradients, overridden  # noqa: E402

SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.data())
def test_sums_and_broadcasts_equal_numpys(shape: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    x = (np.arange(np.prod(shape)) % 97).astype(np.float32).reshape(shape)
    found = broadcasts.total(tf.constant(x), axes).numpy()
    expected = x.sum(axis=tuple(axes), keepdims=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        broadcasts.spread(tf.constant(expected), shape).numpy(), np.broadcast_to(expected, shape)
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6))
def test_the_gradient_of_a_repetition_sums_its_copies_over_few_axes(axes: list[tuple[int, int]]) -> None:
    sizes, repeats = zip(*axes, strict=True)
    count = np.prod(sizes) * np.prod(repeats)
    # Small whole numbers: their sums are exact in float32, in whatever order.
    weights = (np.arange(count) % 97).astype(np.float32).reshape(np.multiply(sizes, repeats))

    with tf.Graph().as_default() as graph, overridden():
        x = tf.compat.v1.placeholder(tf.float32, sizes)
        (ours,) = gradients([tf.tile(x, repeats) * weights], [x], [tf.ones(weights.shape)])
        ranks = [op.inputs[0].shape.rank for op in graph.get_operations() if op.type == "Sum"]
        with tf.compat.v1.Session() as session:
            found = session.run(ours, {x: np.zeros(sizes, np.float32)})
    folded = weights.reshape([size for pair in zip(repeats, sizes, strict=True) for size in pair])
    np.testing.assert_array_equal(found, folded.sum(axis=tuple(range(0, 2 * len(sizes), 2))))
    assert max(ranks, default=0) <= broadcasts.MAX_AXES


@pytest.mark.parametrize("operator", ["add", "subtract", "multiply", "divide", "squared_difference"])
@pytest.mark.parametrize(("left", "right"), [((2, 3, 4), (3, 1)), ((1, 1), (2, 5)), ((), (2, 3)), ((2, 2), (2, 2))])
def test_operands_of_unlike_shapes_get_tensorflows_gradients(
    operator: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    values = [generator.uniform(0.5, 2, shape).astype(np.float32) for shape in (left, right)]
    function = getattr(tf.math, operator)

    def differentiated(ours: bool) -> list[np.ndarray]:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            a, b = (tf.compat.v1.placeholder(tf.float32, value.shape) for value in values)
            if ours:
                with overridden():
                    y = function(a, b)
            else:
                y = function(a, b)
            found = tf.gradients(y, [a, b], tf.cos(y))
            return list(session.run(found, dict(zip((a, b), values, strict=True))))

    for found, expected in zip(differentiated(True), differentiated(False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
