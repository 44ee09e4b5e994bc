"""Examples weigh what the data say: in every loader, and in training as in Keras."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Manifest
from fedgrass.data import ArrayDataset, load
from fedgrass.data.loaders import open_source
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import FitSettings
from fedgrass.engines.checks import check_dataset
from fedgrass.errors import DataError
from fedgrass.fitting import _limited
from fedgrass.tensors import Array

CLASSES = ("cat", "dog")


def model(**changes: Any) -> Manifest:
    whole = {"name": "y", "shape": (), "dtype": "int32"}
    files = ("model.tflite", "inference.tflite", "parameters.safetensors")
    given = {
        "name": "m",
        "batch_size": 4,
        "x": {"name": "x", "shape": (2,), "dtype": "float32"},
        "y": whole,
        "output": {"name": "y", "shape": (2,), "dtype": "float32"},
        "loss": "sparse_categorical_crossentropy",
        "parameters": [{"name": "w", "shape": (2,), "dtype": "float32"}],
        "files": {name: {"sha256": "0" * 64, "bytes": 1} for name in files},
    }  # fmt: skip
    return Manifest.model_validate({**given, **changes})


X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 1, 0], np.int32)
WEIGHTS = np.array([1, 0, 2.5, 0.5, 1, 3], np.float32)


def rows(texts: bool, name: str = "sample_weight") -> list[list[Any]]:
    labels = [CLASSES[y] if texts else int(y) for y in Y]
    return [["a", name, "b", "kind"], *([x[0], w, x[1], y] for x, w, y in zip(X, WEIGHTS, labels, strict=True))]


@pytest.mark.parametrize("loader", ["npz", "npy", "csv", "csv of texts", "csv, quoted", "sqlite"])
@pytest.mark.parametrize("name", ["sample_weight", "how_much"])
def test_every_loader_reads_them(tmp_path: Path, loader: str, name: str) -> None:
    manifest, path = model(class_names=CLASSES if "texts" in loader else ()), tmp_path / "data"
    table = rows("texts" in loader, name)
    if loader == "npz":
        arrays: dict[str, Any] = {"x": X, "y": Y, name: WEIGHTS}
        np.savez(path, **arrays)
        path = path.with_suffix(".npz")
    elif loader == "npy":
        path.mkdir()
        for key, array in {"x": X, "y": Y, name: WEIGHTS}.items():
            np.save(path / f"{key}.npy", array)
    elif loader == "sqlite":
        with sqlite3.connect(path) as database:
            database.execute(f"CREATE TABLE t ({', '.join(table[0])})")
            database.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", [[float(v) for v in row] for row in table[1:]])
    else:
        mark = '"' if "quoted" in loader else ""
        path.write_text("\n".join(",".join(f"{mark}{cell}{mark}" for cell in row) for row in table) + "\n")
    kind = loader.split()[0].strip(",")
    settings = DataSettings(loader=kind, path=str(path), weight=name)
    batch = open_source(settings, manifest).read(np.array([5, 0, 2]))
    assert batch.weights is not None
    np.testing.assert_array_equal(batch.weights, [3, 1, 2.5])
    np.testing.assert_array_equal(batch.x, X[[5, 0, 2]])
    np.testing.assert_array_equal(batch.y, Y[[5, 0, 2]])
    parts = load(settings, manifest)
    batches = [batch for part in (parts.train, parts.validation) for batch in part.batches(4)]
    assert np.concatenate([batch.weights for batch in batches if batch.weights is not None]).sum() == 8


def test_data_without_any_have_none_and_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    path = str(tmp_path / "data.npz")
    assert open_source(DataSettings(path=path), model()).read(np.arange(2)).weights is None
    with pytest.raises(DataError, match="how_much"):
        open_source(DataSettings(path=path, weight="how_much"), model())
    (tmp_path / "data.csv").write_text("a,b,kind\n1,2,0\n")
    with pytest.raises(DataError, match="no weight column 'how_much' among a, b, kind"):
        open_source(DataSettings(loader="csv", path=str(tmp_path / "data.csv"), weight="how_much"), model())


def test_a_column_of_that_name_may_be_x(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("sample_weight,b,kind\n1,2,0\n")
    settings = DataSettings(loader="csv", path=str(tmp_path / "data.csv"), columns=("sample_weight", "b"))
    batch = open_source(settings, model()).read(np.arange(1))
    assert batch.weights is None
    np.testing.assert_array_equal(batch.x, [[1, 2]])


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_what_is_no_weight_is_named(wrong: float) -> None:
    weights = WEIGHTS.copy()
    weights[3] = wrong
    with pytest.raises(DataError, match=r"sample_weight of example 3: .* is not a weight"):
        check_dataset(ArrayDataset(X, Y, weights), model())
    with pytest.raises(DataError, match="expected one for each of 6 examples"):
        ArrayDataset(X, Y, WEIGHTS[:5])


def test_a_row_with_a_negative_weight_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b,kind,sample_weight\n" + "1,2,0,1\n" * 20 + "1,2,0,-3\n")
    source = open_source(DataSettings(loader="csv", path=str(tmp_path / "data.csv")), model())
    assert len(source) == 20
    assert "row 22, column 'sample_weight': -3 is not a weight" in str(vars(source)["account"].__dict__)


def test_fewer_examples_keep_their_weights() -> None:
    (batch,) = _limited(ArrayDataset(X, Y, WEIGHTS), 3).batches(4)
    np.testing.assert_array_equal(batch.weights, WEIGHTS[:3])


@pytest.mark.authoring
def test_ten_steps_equal_keras_fit_with_sample_weight(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from fedgrass.authoring.export import export
    from fedgrass.engines.litert import LiteRTEngine

    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3, activation="softmax")]
    )
    made = export(net, tmp_path, loss="sparse_categorical_crossentropy", batch_size=8, prove=False)
    generator = np.random.default_rng(0)
    x: Array = generator.normal(size=(40, 5)).astype(np.float32)
    y, weights = generator.integers(0, 3, 40).astype(np.int32), generator.exponential(size=40).astype(np.float32)
    weights[::7] = 0
    settings, data = FitSettings(epochs=2, learning_rate=0.2), ArrayDataset(x, y, weights)
    found = LiteRTEngine(made).fit(data, settings)
    net.compile(keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy")
    losses = [
        float(net.train_on_batch(batch.x, batch.y, sample_weight=batch.weights))
        for epoch in range(2)
        for batch in data.batches(8, seed=settings.epoch_seed(epoch))
    ]
    assert np.isfinite(losses).all()
    for value, variable in zip(found.parameters.values(), net.weights, strict=True):
        np.testing.assert_allclose(value, variable.numpy(), atol=1e-6)
    unweighted = LiteRTEngine(made).fit(ArrayDataset(x, y), settings)
    assert any(
        not np.allclose(a, b) for a, b in zip(found.parameters.values(), unweighted.parameters.values(), strict=True)
    )
