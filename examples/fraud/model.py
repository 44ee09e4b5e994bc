"""Logistic regression of scikit-learn: ``examples.fraud.model:logistic`` builds what the server evaluates and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription

COLUMNS = ("amount", "hour", "distance", "in_an_hour", "age", "balance", "merchant", "country")
CLASSES = ("payment", "fraud")


def logistic() -> Any:
    """Return the estimator, as clients make it too."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=50)


def write_first_bundle(folder: Path) -> Bundle:
    """Write the fleet's first model."""
    from fedgrass.engines.sklearn import initial_parameters

    return new_bundle(
        folder,
        NewModel(
            engine="sklearn",
            name="fraud",
            parameters=initial_parameters(logistic, features=len(COLUMNS), classes=2),
            x=TensorDescription(name="x", shape=(len(COLUMNS),), dtype="float32"),
            y=TensorDescription(name="y", shape=(), dtype="int32"),
            output=TensorDescription(name="y", shape=(), dtype="float32"),
            loss="binary_crossentropy",
            batch_size=64,
            class_names=CLASSES,
        ),
    )
