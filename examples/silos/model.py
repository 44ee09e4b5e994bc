"""Logistic regression for 30 numbers and 2 classes: ``examples.silos.model:logistic`` is the ``builder`` of every participant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, TensorDescription

FEATURES = 30
CLASSES = ("malignant", "benign")


def logistic() -> Any:
    """Return scikit-learn's estimator."""
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", alpha=1e-3, random_state=1)


def write_first_bundle(folder: Path) -> Bundle:
    """Write the fleet's first model, to be published with ``fedgrass model publish``."""
    from fedgrass.engines.sklearn import initial_parameters

    return new_bundle(
        folder,
        NewModel(
            engine="sklearn",
            name="breast-cancer",
            parameters=initial_parameters(logistic, features=FEATURES, classes=len(CLASSES)),
            x=TensorDescription(name="x", shape=(FEATURES,), dtype="float32"),
            y=TensorDescription(name="y", shape=(), dtype="int32"),
            output=TensorDescription(name="y", shape=(), dtype="float32"),
            loss="binary_crossentropy",
            batch_size=16,
            class_names=CLASSES,
        ),
    )
