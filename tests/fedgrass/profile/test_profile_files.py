"""A device's file of sums: what is written is read, and what cannot be is refused by a code."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import Bundle
from fedgrass.data.arrays import ArrayDataset
from fedgrass.data.digits import digits, digits_bundle
from fedgrass.errors import DataError, UpdateError
from fedgrass.profile.features import feature_names, label_names, measured
from fedgrass.profile.files import CODEC, Layout, encode, read
from fedgrass.profile.sums import Bounds
from fedgrass.protocol.profile import StatisticsTask
from fedgrass.update.header import UpdateHeader

MANIFEST = Bundle.open(digits_bundle()).manifest
HEADER = UpdateHeader(
    fleet="mill",
    round=3,
    thing="a",
    base_sha256=MANIFEST.parameters_sha256,
    graph_sha256=MANIFEST.graph_sha256,
    num_examples=100,
    codec=CODEC,
)


def layout(**task: Any) -> Layout:
    return Layout.of(MANIFEST, StatisticsTask(**task), None)


def made(wanted: Layout, **changes: Any) -> bytes:
    source = digits(MANIFEST.x.shape)
    examples = source.read(np.arange(100))
    sums = measured(ArrayDataset(examples.x, examples.y), MANIFEST, wanted.bounds)
    arrays, metadata = encode(sums, HEADER, wanted)
    for name, (place, value) in changes.items():
        arrays[name][place] = value
    return b"".join(tensors.encode(arrays, metadata))


def opened(content: bytes, wanted: Layout) -> Any:
    return read(io.BytesIO(content), len(content), wanted)


@pytest.mark.parametrize("task", [{}, {"low": 0.0, "high": 1.0, "bins": 8}])
def test_what_is_written_is_read(task: dict[str, Any]) -> None:
    wanted = layout(**task)
    header, sums = opened(made(wanted), wanted)
    assert header == HEADER
    x = digits(MANIFEST.x.shape).read(np.arange(100)).x.reshape(100, 64).astype(np.float64)
    np.testing.assert_allclose(sums.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums.variance, x.var(axis=0), rtol=1e-9, atol=1e-15)
    y = digits(MANIFEST.x.shape).read(np.arange(100)).y
    assert sums.labels.tolist() == np.bincount(np.ravel(y), minlength=10).tolist()
    assert len(made(wanted)) <= wanted.max_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (5, np.nan)},
        {"mean": (5, 99.0)},
        {"m2": (20, -1.0)},
        {"m2": (20, 1e9)},
        {"high": (20, np.inf)},
        {"count": (0, 10**18)},
        {"count": (0, -1)},
        {"missing": (0, 5)},
        {"histogram": ((20, 3), 4_000_000_000)},
        {"labels": (0, 101)},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    wanted = layout(bins=8)
    bounds = Bounds(np.zeros(64), np.ones(64), 8)
    wanted = Layout(wanted.features, wanted.labels, wanted.rows, bounds)
    with pytest.raises(UpdateError) as caught:
        opened(made(wanted, **changes), wanted)
    assert caught.value.code == "corrupt_data"


def test_a_file_of_another_round_form_is_refused_before_memory_is_taken() -> None:
    content = made(layout(low=0.0, high=1.0, bins=1024))
    with pytest.raises(UpdateError) as caught:
        opened(content, layout())
    assert caught.value.code == "too_large"
    with pytest.raises(UpdateError) as caught:
        opened(made(layout()), layout(low=0.0, high=1.0, bins=8))
    assert caught.value.code == "wrong_shape"


def test_each_cut_is_refused() -> None:
    wanted = layout()
    content = made(wanted)
    for length in (0, 7, 8, 100, len(content) - 1):
        with pytest.raises(UpdateError):
            opened(content[:length], wanted)


def test_no_minimum_is_told_beyond_the_operators_bounds() -> None:
    wanted = layout(low=0.25, high=0.5, bins=4)
    _, sums = opened(made(wanted), wanted)
    there = sums.count > 0
    assert sums.low[there].min() >= 0.25
    assert sums.high[there].max() <= 0.5


def test_missing_values_are_counted_and_change_nothing_else() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8, 8, 1)).astype(np.float32)
    x[:10, 0, 0, 0] = np.nan
    x[3, 0, 1, 0] = np.inf
    sums = measured(ArrayDataset(x, np.zeros(50, np.int32)), MANIFEST)
    assert sums.missing[:3].tolist() == [10, 1, 0]
    assert sums.mean[0] == pytest.approx(np.nanmean(x[:, 0, 0, 0].astype(np.float64)))


def test_examples_of_another_shape_and_labels_out_of_range_are_named() -> None:
    with pytest.raises(DataError, match="shape"):
        measured(ArrayDataset(np.zeros((3, 5), np.float32), np.zeros(3, np.int32)), MANIFEST)
    with pytest.raises(DataError, match="label 10"):
        measured(ArrayDataset(np.zeros((3, 8, 8, 1), np.float32), np.full(3, 10, np.int32)), MANIFEST)


def test_features_are_columns_places_or_channels() -> None:
    assert feature_names(MANIFEST)[:2] == ("x[0,0,0]", "x[0,1,0]")
    assert label_names(MANIFEST) == MANIFEST.class_names or len(label_names(MANIFEST)) == 10
    x = MANIFEST.x.model_copy(update={"shape": (224, 224, 3)})
    assert len(feature_names(MANIFEST.model_copy(update={"x": x}))) == 3
