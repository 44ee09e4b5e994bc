"""Weights of classes: against Keras' own ``class_weight`` and scikit-learn's ``balanced``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from fedgrass.authoring.export import export
from fedgrass.bundle import Bundle, Loss, Manifest, Optimizer, TensorDescription
from fedgrass.data import ArrayDataset
from fedgrass.data.arrays import shuffled
from fedgrass.engines.base import FitSettings
from fedgrass.engines.keras import KerasEngine
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.engines.weights import weighted
from fedgrass.errors import ConfigurationError

BATCH = 8
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(43, 5)).astype(np.float32)  # the last batch is short
CLASSES = DRAW.choice(3, len(X), p=[0.7, 0.2, 0.1]).astype(np.int32)
KINDS: dict[Loss, Any] = {
    "sparse_categorical_crossentropy": CLASSES,
    "categorical_crossentropy": np.eye(3, dtype=np.float32)[CLASSES],
    "binary_crossentropy": (CLASSES > 0).astype(np.float32)[:, np.newaxis],
}
WEIGHTS = {0: 0.5, 1: 3.0, 2: 7.0}


def built(loss: Loss) -> Any:
    keras.utils.set_random_seed(3)
    head = (1, "sigmoid") if loss == "binary_crossentropy" else (3, "softmax")
    layers = [keras.layers.Dense(7, "tanh", name="hidden"), keras.layers.Dense(*head, name="head")]
    return keras.Sequential([keras.Input((5,)), *layers], name="net")


def exported(loss: Loss, folder: Path, optimizer: Literal["sgd", "momentum", "adam"] = "sgd") -> Bundle:
    names = () if loss == "binary_crossentropy" else ("cat", "dog", "owl")
    return export(
        built(loss), folder, loss=loss, batch_size=BATCH, optimizer=Optimizer(name=optimizer), class_names=names
    )


def by_keras(loss: Loss, optimizer: Any, class_weight: dict[int, float], epochs: int) -> tuple[list[Any], list[float]]:
    """Train with Keras' own class_weight, in the order of the engines' batches."""
    model, y = built(loss), KINDS[loss]
    model.compile(optimizer, loss)
    losses = []
    for epoch in range(epochs):
        order = shuffled(len(X), FitSettings().epoch_seed(epoch))
        total = 0.0
        for first in range(0, len(X), BATCH):
            part = order[first : first + BATCH]
            total += float(model.train_on_batch(X[part], y[part], class_weight=class_weight)) * len(part)
            model.reset_metrics()
        losses.append(total / len(X))
    return model.get_weights(), losses


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_devices_train_with_class_weights_as_keras_does(loss: Loss, optimizer: Any, tmp_path: Path) -> None:
    binary = loss == "binary_crossentropy"
    weights = {0: 0.5, 1: 3.0} if binary else WEIGHTS
    rate = 0.05
    made = keras.optimizers.SGD(rate) if optimizer == "sgd" else keras.optimizers.Adam(rate)
    expected, losses = by_keras(loss, made, weights, epochs=2)
    bundle = exported(loss, tmp_path, optimizer)
    named = {str(key): value for key, value in weights.items()}
    if not binary:
        named = dict(zip(bundle.manifest.class_names, weights.values(), strict=True))
    settings = FitSettings(epochs=2, learning_rate=rate, class_weight=named)
    for engine in (LiteRTEngine(bundle), KerasEngine(bundle, builder=lambda: built(loss))):
        result = engine.fit(ArrayDataset(X, KINDS[loss]), settings)
        for found, value in zip(result.parameters.values(), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
        assert result.metrics["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_a_class_of_no_weight_counts_in_the_mean_as_in_keras(tmp_path: Path) -> None:
    loss: Loss = "sparse_categorical_crossentropy"
    expected, _ = by_keras(loss, keras.optimizers.SGD(0.1), {0: 0.0, 1: 1.0, 2: 2.0}, epochs=1)
    engine = LiteRTEngine(exported(loss, tmp_path))
    settings = FitSettings(learning_rate=0.1, class_weight={"cat": 0.0, "2": 2.0})
    result = engine.fit(ArrayDataset(X, CLASSES), settings)
    for found, value in zip(result.parameters.values(), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


def manifest(loss: Loss, y: tuple[int, ...], output: tuple[int, ...], names: tuple[str, ...] = ()) -> Manifest:
    return Manifest.model_construct(
        name="m",
        batch_size=BATCH,
        loss=loss,
        class_names=names,
        y=TensorDescription(name="y", shape=y, dtype="int32" if loss.startswith("sparse") else "float32"),
        output=TensorDescription(name="y", shape=output, dtype="float32"),
    )


@pytest.mark.parametrize("loss", KINDS)
def test_balanced_is_what_scikit_learn_computes_of_the_classes_that_occur(loss: Loss) -> None:
    y = KINDS[loss]
    labels = (CLASSES > 0).astype(int) if loss == "binary_crossentropy" else CLASSES
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)[labels]
    shape = () if loss.startswith("sparse") else y.shape[1:]
    outputs = (1,) if loss == "binary_crossentropy" else (3,)
    found = weighted(ArrayDataset(X, y), "balanced", manifest(loss, shape, outputs))
    weights = np.concatenate([batch.weights for batch in found.batches(5)])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert len(found) == len(X)


@pytest.mark.parametrize(
    ("model", "weights", "said"),
    [
        (manifest("mean_squared_error", (1,), (1,)), "balanced", "has not one class"),
        (manifest("binary_crossentropy", (4,), (4,)), "balanced", "has not one class"),
        (manifest("sparse_categorical_crossentropy", (9,), (9, 3)), "balanced", "has not one class"),
        (manifest("sparse_categorical_crossentropy", (), (3,)), {"3": 1.0}, "no class '3'; it has 0 to 2"),
        (manifest("sparse_categorical_crossentropy", (), (2,), ("a", "b")), {"c": 1.0}, "no class 'c'; it has a, b"),
    ],
)
def test_weights_that_no_class_has_are_refused_by_name(model: Manifest, weights: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        weighted(ArrayDataset(X, CLASSES), weights, model)


def test_without_weights_nothing_is_put_between() -> None:
    data = ArrayDataset(X, CLASSES)
    assert weighted(data, None, manifest("sparse_categorical_crossentropy", (), (3,))) is data
