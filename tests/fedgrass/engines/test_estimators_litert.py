"""Estimators as LiteRT files: what LiteRT's interpreter makes of them is what scikit-learn predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.estimators.litert import litert_model
from fedgrass.errors import EngineError
from fedgrass.inference import Application
from tests.fedgrass.engines.test_sklearn import BINARY, LABELS, TARGETS, VALUES, Build, X, made

FAR = (X * np.array([1, 100, 0.01, 1, 5], np.float32) + np.array([0, 1000, 0, -3, 7], np.float32)).astype(np.float32)
IMAGES = X[:, :4].reshape(-1, 2, 2, 1)

CLASSIFIERS: dict[str, Build] = {
    "logistic": LogisticRegression,
    "without intercept": lambda: LogisticRegression(fit_intercept=False),
    "sgd": lambda: SGDClassifier(loss="log_loss"),
    **{
        f"perceptron {name}": partial(MLPClassifier, (7, 4), activation=name, random_state=0)
        for name in ("relu", "tanh", "logistic", "identity")
    },
    "no layer between": lambda: MLPClassifier((), random_state=0),
}
REGRESSORS: dict[str, Build] = {
    "linear": LinearRegression,
    "ridge": Ridge,
    "lasso": lambda: Lasso(alpha=0.01),
    "elastic": lambda: ElasticNet(alpha=0.01),
    "sgd": SGDRegressor,
    "perceptron": lambda: MLPRegressor(hidden_layer_sizes=(6,), activation="tanh", random_state=0),
}


def written(folder: Path, build: Build, x: Any, y: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Train, and return the estimator and what LiteRT makes of its file, for many examples at once."""
    engine = made(folder, build, x, y)
    for _ in range(2):  # the first measures a scaler
        engine.fit(ArrayDataset(x, y), FitSettings(epochs=3, learning_rate=0.01))
    engine.save(folder / "model.tflite")
    infer = Interpreter(model_path=str(folder / "model.tflite")).get_signature_runner("infer")
    one = Application(folder / "model.tflite", engine.manifest)(x[:1])
    assert np.array_equal(one, infer(x=x[:1])["y"])
    return engine.estimator, lambda given: infer(x=given)["y"]


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("labels", ["two classes", "three classes"])
def test_probabilities_of_a_classifier_are_scikit_learns(tmp_path: Path, name: str, labels: str) -> None:
    y = BINARY if labels == "two classes" else LABELS
    estimator, infer = written(tmp_path, CLASSIFIERS[name], X, y)
    expected = estimator.predict_proba(X)
    np.testing.assert_allclose(infer(X), expected, atol=2e-6)
    assert infer(X[:3]).shape == (3, y.max() + 1)


@pytest.mark.parametrize("name", REGRESSORS)
def test_values_of_a_regressor_are_scikit_learns(tmp_path: Path, name: str) -> None:
    estimator, infer = written(tmp_path, REGRESSORS[name], X, VALUES)
    np.testing.assert_allclose(infer(X)[:, 0], np.ravel(estimator.predict(X)), atol=1e-5)


def test_several_targets_images_and_a_scaler_far_from_zero(tmp_path: Path) -> None:
    estimator, infer = written(tmp_path / "targets", Ridge, X, TARGETS)
    np.testing.assert_allclose(infer(X), estimator.predict(X), atol=1e-5)
    estimator, infer = written(tmp_path / "images", LogisticRegression, IMAGES, LABELS)
    np.testing.assert_allclose(infer(IMAGES), estimator.predict_proba(X[:, :4]), atol=2e-6)
    build = lambda: make_pipeline(StandardScaler(), LogisticRegression())  # noqa: E731
    estimator, infer = written(tmp_path / "far", build, FAR, LABELS)
    assert np.abs(estimator[0].mean_).max() > 900
    # float32 has 1000 ± 1e-4 of a column whose spread is 100.
    np.testing.assert_allclose(infer(FAR), estimator.predict_proba(FAR.astype(float)), atol=2e-5)


def test_what_is_no_dense_layer_is_refused_by_name(tmp_path: Path) -> None:
    engine = made(tmp_path, GaussianNB, X, BINARY)
    with pytest.raises(EngineError, match="GaussianNB: is not made of dense layers"):
        engine.save(tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()
    fitted = make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, BINARY)
    with pytest.raises(EngineError, match="MinMaxScaler: only a StandardScaler"):
        litert_model(fitted, engine.manifest)
