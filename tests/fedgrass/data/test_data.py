"""Loading, splitting and dividing examples."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.bundle import Manifest
from fedgrass.data import ArrayDataset, DataSettings, load, split
from fedgrass.data.arrays import shuffled
from fedgrass.data.partition import dirichlet
from fedgrass.errors import DataError

ANY_MODEL = cast(Manifest, None)


@given(count=st.integers(0, 50), batch=st.integers(1, 20), seed=st.none() | st.integers(0, 5))
def test_batches_hold_every_example_once(count: int, batch: int, seed: int | None) -> None:
    data = ArrayDataset(np.arange(count), np.arange(count) * 2)
    batches = list(data.batches(batch, seed=seed))
    assert sorted(np.concatenate([b.x for b in batches]).tolist() if batches else []) == list(range(count))
    assert all(np.array_equal(b.y, b.x * 2) for b in batches)
    assert all(len(b.x) == batch for b in batches[:-1])


def test_the_order_of_examples_depends_on_the_seed_alone() -> None:
    data = ArrayDataset(np.arange(100), np.arange(100))
    order = [b.x.tolist() for b in data.batches(10, seed=3)]
    assert order == [b.x.tolist() for b in data.batches(10, seed=3)]
    assert order != [b.x.tolist() for b in data.batches(10, seed=4)]


@given(count=st.integers(0, 200), seed=st.integers(0, 1 << 40))
def test_a_shuffle_has_every_number_once(count: int, seed: int) -> None:
    assert sorted(shuffled(count, seed)) == list(range(count))


def test_a_shuffle_is_the_same_on_every_machine_and_even() -> None:
    assert shuffled(8, 1).tolist() == [0, 2, 3, 7, 6, 1, 5, 4]
    found = np.array([shuffled(5, seed) for seed in range(4000)])
    often = np.array([[(found[:, place] == number).sum() for number in range(5)] for place in range(5)])
    assert (abs(often - 800) < 130).all()


@given(count=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 3))
def test_a_split_loses_nothing_and_leaves_something_to_train_on(count: int, fraction: float, seed: int) -> None:
    parts = split(np.arange(count), np.arange(count), validation_fraction=fraction, seed=seed)
    assert len(parts.train) + len(parts.validation) == count
    assert len(parts.train) >= 1
    if fraction > 0 and count > 1:
        assert len(parts.validation) >= 1


def test_npz_data_load_from_a_path_with_the_things_name_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_IOT_THING_NAME", "pump-7")
    (tmp_path / "pump-7").mkdir()
    np.savez(tmp_path / "pump-7" / "data.npz", x=np.zeros((10, 2)), y=np.arange(10))
    loaded = load(DataSettings(path=f"{tmp_path}/$AWS_IOT_THING_NAME/data.npz", validation_fraction=0.3), ANY_MODEL)
    assert (len(loaded.train), len(loaded.validation)) == (7, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ({"x": np.zeros(3)}, "'x' and 'y'"),
        ({"x": np.zeros(0), "y": np.zeros(0)}, "no examples"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, "3 examples and y 2"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1)}, "plain arrays"),
        ({"x": np.zeros(10_000), "y": np.zeros(10_000)}, "maxBytes"),
        (b"not a zip", "plain arrays"),
    ],
)
def test_bad_data_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "data.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(DataError, match=message):
        load(DataSettings(path=str(path), max_bytes=50_000), ANY_MODEL)


@pytest.mark.parametrize("loader", ["parquet", "no.such.module:load", "json:nothing", "json:decoder"])
def test_an_unknown_loader_is_named(loader: str) -> None:
    with pytest.raises(DataError, match=loader.split(":")[0]):
        load(DataSettings(loader=loader), ANY_MODEL)


def test_a_function_of_the_users_own_loads_data(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_module")
    module.load = lambda settings, manifest: (np.zeros((4, 1)), np.zeros(4))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_module", module)
    assert len(load(DataSettings(loader="users_module:load"), ANY_MODEL).train) == 3


@given(devices=st.integers(1, 8), alpha=st.floats(0.2, 10), seed=st.integers(0, 20))
def test_a_partition_gives_every_example_to_one_device(devices: int, alpha: float, seed: int) -> None:
    labels = np.tile(np.arange(10), 100)
    parts = dirichlet(labels, devices, alpha=alpha, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert min(len(part) for part in parts) >= 10


def test_a_small_alpha_makes_devices_one_sided() -> None:
    labels = np.tile(np.arange(10), 200)

    def largest_share(alpha: float) -> float:
        parts = dirichlet(labels, 5, alpha=alpha, seed=1)
        return float(np.mean([np.bincount(labels[part], minlength=10).max() / len(part) for part in parts]))

    assert largest_share(0.3) > 1.5 * largest_share(100.0)


def test_more_devices_than_the_examples_can_serve_is_an_error() -> None:
    with pytest.raises(DataError, match="fewer devices"):
        dirichlet(np.zeros(20), 5, alpha=1.0, seed=0)
