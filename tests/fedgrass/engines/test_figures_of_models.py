"""Figures of a model, and of a fleet's devices together, against scikit-learn on all examples in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fedgrass.bundle import Manifest, TensorDescription
from fedgrass.engines.metrics import sigmoid, softmax
from fedgrass.engines.tally import Tally
from fedgrass.errors import MessageError
from fedgrass.protocol.sums import MAX_TEXT, Sums, added

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def manifest(loss: str, output: tuple[int, ...], quantile: float | None = None) -> Manifest:
    sparse = loss.startswith("sparse")
    return Manifest.model_construct(
        name="m",
        batch_size=16,
        loss=loss,
        y=TensorDescription(name="y", shape=output[:-1] if sparse else output, dtype="int32" if sparse else "float32"),
        output=TensorDescription(name="y", shape=output, dtype="float32"),
        anomaly_quantile=quantile,
    )


def tallied(model: Manifest, output: Any, y: Any, anomaly: Any = None, batch: int = 7) -> tuple[dict[str, float], Sums]:
    tally = Tally(model)
    for first in range(0, len(y), batch):
        part = slice(first, first + batch)
        tally.add(output[part], y[part], None if anomaly is None else anomaly[part])
    found, sums = tally.figures()
    assert sums is not None
    return found, sums


def devices(model: Manifest, output: Any, y: Any, sizes: list[int]) -> Sums:
    """Each device's sums by way of a message, added as the cloud does."""
    parts, first = [], 0
    for size in sizes:
        text = tallied(model, output[first : first + size], y[first : first + size])[1].encode()
        assert len(text) <= MAX_TEXT
        parts.append(Sums.decode(text))
        first += size
    assert first == len(y)
    return added(parts, [part.rows for part in parts])


def classes(count: int, rows: int, seed: int, steps: tuple[int, ...] = ()) -> Arrays:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, count, (rows, *steps)).astype(np.int32)
    logits = draw.normal(size=(*y.shape, count)) + 1.2 * np.eye(count)[y]
    return softmax(logits).astype(np.float32), y


@pytest.mark.parametrize("count", [2, 3, 10, 100])
@pytest.mark.parametrize("steps", [(), (5,)])
def test_classifiers_figures_are_scikit_learns_on_one_device_and_over_many(count: int, steps: tuple[int, ...]) -> None:
    output, y = classes(count, 400, count, steps)
    flat, labels = output.reshape(-1, count), y.reshape(-1)
    given = flat.argmax(axis=1)
    kind = "binary" if count == 2 else "macro"
    expected = {
        "precision": reference.precision_score(labels, given, average=kind, zero_division=0),
        "recall": reference.recall_score(labels, given, average=kind, zero_division=0),
        "f1": reference.f1_score(labels, given, average=kind),
        "f1_macro": reference.f1_score(labels, given, average="macro"),
    }
    occurring = [1] if count == 2 else np.unique(labels)  # of 400 examples, not each of 100 classes
    area = float(np.mean([reference.roc_auc_score(labels == each, flat[:, each]) for each in occurring]))
    for sparse in (True, False):
        model = manifest("sparse_categorical_crossentropy" if sparse else "categorical_crossentropy", (*steps, count))
        truth = y if sparse else np.eye(count, dtype=np.float32)[y]
        found, _ = tallied(model, output, truth)
        assert found == pytest.approx({**expected, "auc": area}, rel=1e-9)
        pooled = devices(model, output, truth, [1, 2, 97, 100, 200]).figures()
        assert {name: pooled[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        if count <= 16:
            assert abs(pooled["auc"] - area) <= pooled["auc_error"] + 1e-12
            assert pooled["auc_error"] < (0.01 if count == 2 else 0.05)
        else:
            assert "auc" not in pooled


@pytest.mark.parametrize("labels", [1, 2, 5, 16])
def test_labels_figures_are_scikit_learns(labels: int) -> None:
    draw = np.random.default_rng(labels)
    y = (draw.random((300, labels)) < 0.3).astype(np.float32)
    output = sigmoid(draw.normal(size=y.shape) * 2 + 2 * y - 1).astype(np.float32)
    given = output > 0.5
    kind = "binary" if labels == 1 else "macro"
    truth, said = (y[:, 0], given[:, 0]) if labels == 1 else (y, given)
    expected = {
        "precision": reference.precision_score(truth, said, average=kind, zero_division=0),
        "recall": reference.recall_score(truth, said, average=kind, zero_division=0),
        "f1": reference.f1_score(truth, said, average=kind),
        "f1_macro": reference.f1_score(truth, said, average="macro"),
    }
    area = reference.roc_auc_score(truth, output[:, 0] if labels == 1 else output)
    model = manifest("binary_crossentropy", (labels,))
    assert tallied(model, output, y)[0] == pytest.approx({**expected, "auc": area}, rel=1e-9)
    pooled = devices(model, output, y, [3, 97, 200]).figures()
    assert {name: pooled[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert abs(pooled["auc"] - area) <= pooled["auc_error"] + 1e-12


@pytest.mark.parametrize("shape", [(1,), (3,), (16,), (4, 3), (40,)])
@pytest.mark.parametrize("far", [0.0, 1e6])
def test_regressions_figures_are_scikit_learns(shape: tuple[int, ...], far: float) -> None:
    """Also where the labels' mean is large: then a difference of sums of squares has no digit left."""
    draw = np.random.default_rng(1)
    y = far + draw.normal(size=(250, *shape)) * 3
    output = y + draw.normal(size=y.shape)
    truth, said = y.reshape(len(y), -1), output.reshape(len(y), -1)
    expected = {
        "mae": reference.mean_absolute_error(truth, said),
        "rmse": float(np.sqrt(reference.mean_squared_error(truth, said))),
    }
    determination = reference.r2_score(truth, said)
    model = manifest("mean_squared_error", shape)
    assert tallied(model, output, y)[0] == pytest.approx({**expected, "r2": determination}, rel=1e-6)
    pooled = devices(model, output, y, [1, 49, 200]).figures()
    assert {name: pooled[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    if truth.shape[1] <= 16:
        assert pooled["r2"] == pytest.approx(determination, rel=1e-6)
    else:
        assert "r2" not in pooled


def test_outputs_that_never_change_have_the_r2_that_scikit_learn_gives() -> None:
    y = np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0]])
    for output in (y, y + 1, y + np.array([0.0, 1.0])):
        found, sums = tallied(manifest("mean_squared_error", (2,)), output, y)
        assert found["r2"] == pytest.approx(reference.r2_score(y, output))
        assert sums.figures()["r2"] == pytest.approx(reference.r2_score(y, output))


def test_one_class_alone_has_no_auc() -> None:
    output, _ = classes(2, 20, 1)
    found, sums = tallied(manifest("sparse_categorical_crossentropy", (2,)), output, np.zeros(20, np.int32))
    assert "auc" not in found
    assert "auc" not in sums.figures()
    assert found["f1_macro"] == pytest.approx(
        reference.f1_score(np.zeros(20), output.argmax(axis=1), average="macro", zero_division=0)
    )


def test_an_anomaly_detectors_threshold_is_a_quantile_of_normal_errors() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1000, 4)).astype(np.float32)
    anomaly = np.arange(1000) % 10 == 0
    output = (x + draw.normal(size=x.shape) * np.where(anomaly, 2, 0.5)[:, None]).astype(np.float32)
    model = manifest("mean_squared_error", (4,), quantile=0.95)
    found, sums = tallied(model, output, x, anomaly)
    errors = ((output.astype(np.float64) - x) ** 2).mean(axis=1)
    threshold = np.quantile(errors[~anomaly], 0.95)
    assert found["error_threshold"] == pytest.approx(threshold)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(anomaly, errors), abs=1e-6)
    assert found["f1"] == pytest.approx(reference.f1_score(anomaly, errors > threshold))
    assert Sums.decode(sums.encode()).figures()["error_threshold"] == pytest.approx(threshold, rel=0.05)
    pooled = devices(model, output[~anomaly], x[~anomaly], [100, 300, 500])
    assert pooled.figures()["error_threshold"] == pytest.approx(threshold, rel=0.05)


@given(
    scores=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
@settings(max_examples=150, deadline=None)
def test_areas_are_right_for_any_scores_and_any_split(scores: list[tuple[float, bool]], cut: int) -> None:
    output = np.array([score for score, _ in scores], np.float32)[:, np.newaxis]
    y = np.array([label for _, label in scores], np.float32)[:, np.newaxis]
    model = manifest("binary_crossentropy", (1,))
    found, sums = tallied(model, output, y)
    if len(np.unique(y)) < 2:
        assert "auc" not in found
        return
    area = reference.roc_auc_score(y[:, 0], output[:, 0])
    assert found["auc"] == pytest.approx(area, abs=1e-12)
    sizes = [size for size in (min(cut, len(y)), len(y) - min(cut, len(y))) if size]
    pooled = devices(model, output, y, sizes).figures()
    assert abs(pooled["auc"] - area) <= pooled["auc_error"] + 1e-12
    assert pooled["auc"] == pytest.approx(sums.figures()["auc"])


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_text_gets_past_as_sums(content: bytes) -> None:
    with pytest.raises(MessageError, match="sums"):
        Sums.decode(content.decode("latin-1"))


def test_sums_that_cannot_be_are_refused() -> None:
    import base64
    import json
    import zlib

    def packed(plain: object) -> str:
        return base64.b64encode(zlib.compress(json.dumps(plain).encode())).decode()

    good = {"k": "classes", "n": 10, "r": [3, 4], "g": [5, 5], "t": [4, 6]}
    assert Sums.decode(packed(good)).rows == 10
    for wrong in (
        {"r": [5, 4]},
        {"t": [4, 7]},
        {"n": 0},
        {"n": float("nan")},
        {"r": [3], "g": [5]},
        {"r": [-1, 4]},
        {"g": [11, 5]},
        {"r": [1.0] * 200, "g": [1.0] * 200, "t": [0.05] * 200},
        {"s": [{"p": [9, 9], "n": [0, 0]}]},
        {"s": [{"p": [1, 1], "n": [0]}]},
        {"k": "else"},
        {"q": -1.0},
        {"q": 1e300},
        {"h": {"99999": 1}},
    ):
        with pytest.raises(MessageError, match="sums"):
            Sums.decode(packed({**good, **wrong}))
    with pytest.raises(MessageError, match="more than"):
        Sums.decode(packed({**good, "x": "0" * 100_000}))
