"""Models of other engines for scikit-learn's digits, and bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Optimizer, Parameters, TensorDescription
from fedgrass.engines.base import Dataset, FitSettings
from fedgrass.engines.metrics import correct, losses, softmax
from fedgrass.tensors import Array

X = TensorDescription(name="x", shape=(8, 8, 1), dtype="float32")
Y = TensorDescription(name="y", shape=(), dtype="int32")
OUTPUT = TensorDescription(name="y", shape=(10,), dtype="float32")


def digits_bundle(
    folder: Path, engine: str, parameters: Parameters, optimizer: str = "sgd", name: str = "digits"
) -> Bundle:
    return new_bundle(
        folder,
        NewModel(
            engine=engine,
            name=name,
            parameters=parameters,
            x=X,
            y=Y,
            output=OUTPUT,
            loss="sparse_categorical_crossentropy",
            batch_size=16,
            optimizer=Optimizer.model_validate({"name": optimizer}),
        ),
    )


def torch_module() -> Any:
    import torch

    torch.manual_seed(1)
    layers = torch.nn
    return layers.Sequential(
        layers.Flatten(),
        layers.Linear(64, 32),
        layers.BatchNorm1d(32),
        layers.ReLU(),
        layers.Dropout(0.1),
        layers.Linear(32, 10),
    )


def keras_model() -> Any:
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(32, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Dense(10),
        ]
    )


def perceptron() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((32,), random_state=1)


def logistic() -> Any:
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", random_state=1)


class NumPyLogistic:
    """A Flower client as its users write it: logistic regression on its own data."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def get_parameters(self, config: dict[str, Any]) -> list[Array]:
        return [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)]

    def fit(self, parameters: list[Array], config: dict[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        weights, bias = (np.array(value, np.float64) for value in parameters)
        settings = FitSettings(seed=int(config["seed"]))
        total = 0.0
        for epoch in range(int(config["epochs"])):
            total = 0.0
            for batch in self.data.batches(int(config["batch_size"]), seed=settings.epoch_seed(epoch)):
                x = batch.x.reshape(len(batch.x), -1).astype(np.float64)
                outputs = softmax(x @ weights + bias)
                total += float(losses("sparse_categorical_crossentropy", outputs, batch.y).sum())
                error = (outputs - np.eye(10)[batch.y]) / len(x)
                weights -= config["learning_rate"] * x.T @ error
                bias -= config["learning_rate"] * error.sum(axis=0)
        return [weights, bias], len(self.data), {"loss": total / len(self.data), "who": "client"}

    def evaluate(self, parameters: list[Array], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        loss = right = count = 0.0
        for batch in self.data.batches(int(config["batch_size"])):
            outputs = softmax(batch.x.reshape(len(batch.x), -1) @ parameters[0] + parameters[1])
            loss += float(losses("sparse_categorical_crossentropy", outputs, batch.y).sum())
            right += float(correct("sparse_categorical_crossentropy", outputs, batch.y).sum())
            count += len(batch.x)
        return loss / count, int(count), {"accuracy": right / count}
