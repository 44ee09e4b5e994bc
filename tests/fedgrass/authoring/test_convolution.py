"""Convolutions as products, and their gradients, are those that plain NumPy adds up tap by tap in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

tf = pytest.importorskip("tensorflow")

from fedgrass.authoring.convolution import convolution  # noqa: E402 - only where TensorFlow is
from fedgrass.authoring.windows import output_and_padding, reach  # noqa: E402


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "dilations"),
    [
        ((7, 9, 3), (3, 3, 5), (1, 1), (1, 1)),
        ((7, 9, 3), (3, 2, 40), (1, 1), (1, 1)),
        ((8, 9, 20), (3, 3, 2), (1, 1), (1, 1)),
        ((8, 8, 4), (1, 1, 3), (2, 2), (1, 1)),
        ((11, 10, 2), (5, 4, 3), (3, 2), (1, 1)),
        ((1, 37, 4), (1, 5, 3), (1, 1), (1, 4)),
        ((12, 13, 2), (3, 3, 3), (1, 1), (2, 3)),
        ((12, 13, 2), (3, 3, 3), (2, 2), (2, 2)),
        ((5, 5, 17), (5, 5, 16), (1, 1), (1, 1)),
    ],
)
def test_values_and_gradients_are_those_of_numpy(
    size: tuple[int, ...], kernel: tuple[int, ...], strides: Any, dilations: Any, padding: str
) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, *size))
    filters = generator.normal(size=(kernel[0], kernel[1], size[2], kernel[2]))

    def convolved(x: Any, filters: Any) -> Any:
        return convolution(x, filters, strides, padding, dilations)

    y, by_x, by_filters = _traced(convolved, x, filters)
    for found, wanted in zip((y, by_x, by_filters), _expected(x, filters, y, strides, padding, dilations), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


def _traced(function: Any, x: Any, filters: Any) -> list[Any]:
    """Values, and the gradients of half their squares' sum."""

    def run(x: Any, filters: Any) -> list[Any]:
        y = function(x, filters)
        return [y, *tf.gradients(y, [x, filters], grad_ys=y)]

    traced = tf.function(run, autograph=False)
    return [value.numpy() for value in traced(tf.constant(x, tf.float32), tf.constant(filters, tf.float32))]


def _expected(x: Any, filters: Any, dy: Any, strides: Any, padding: str, dilations: Any) -> list[Any]:
    rows, columns = filters.shape[:2]
    spans = [reach(*axis) for axis in zip((rows, columns), dilations, strict=True)]
    axes = [
        output_and_padding(have, span, stride, padding)
        for have, span, stride in zip(x.shape[1:3], spans, strides, strict=True)
    ]
    # Zeros enough on both sides; what is cut off of them is what no tap reaches.
    wide = np.pad(x, [[0, 0], *([before, 50] for _, before in axes), [0, 0]])
    y, by_wide, by_filters = np.zeros(dy.shape), np.zeros(wide.shape), np.zeros(filters.shape)
    for a, b in itertools.product(range(rows), range(columns)):
        at = [
            slice(tap * dilation, tap * dilation + count * stride, stride)
            for tap, dilation, stride, (count, _) in zip((a, b), dilations, strides, axes, strict=True)
        ]
        seen = wide[:, at[0], at[1]]
        y += seen @ filters[a, b]
        by_wide[:, at[0], at[1]] += dy @ filters[a, b].T
        by_filters[a, b] = np.einsum("bhwc,bhwn->cn", seen, dy)
    (_, top), (_, left) = axes
    return [y, by_wide[:, top : top + x.shape[1], left : left + x.shape[2]], by_filters]
