"""Depthwise convolutions as matrix products equal TensorFlow's, with both gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring import depthwise  # noqa: E402 - only where TensorFlow is


def outcome(function: Any, x: Any, kernel: Any) -> list[Any]:
    """Output and gradients of a sum in which each output has its own weight."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = function(x, kernel)
        total = tf.reduce_sum(y * np.linspace(-1, 1, y.shape.num_elements(), dtype=np.float32).reshape(y.shape))
    return [y, *tape.gradient(total, [x, kernel])]


@pytest.mark.parametrize("max_waste", [np.inf, 0], ids=["strips", "operator"])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        ((3, 4), (3, 3), 1),  # one strip
        ((13, 5), (3, 3), 1),
        ((13, 5), (5, 2), 1),
        ((12, 9), (3, 3), 2),
        ((21, 8), (3, 2), 3),
        ((11, 6), (1, 2), 2),
    ],
)
def test_strips_and_the_operator_give_tensorflows_output_and_gradients(
    monkeypatch: pytest.MonkeyPatch, size: Any, kernel: Any, stride: int, padding: str, max_waste: float
) -> None:
    monkeypatch.setattr(depthwise, "MAX_WASTE", max_waste)
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(2, *size, 3)), tf.float32)
    filters = tf.constant(generator.normal(size=(*kernel, 3, 2)), tf.float32)
    found = outcome(lambda x, k: depthwise.depthwise_convolution(x, k, (stride, stride), padding), x, filters)
    expected = outcome(lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, stride, stride, 1], padding), x, filters)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
