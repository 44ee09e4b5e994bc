"""Softmax regression in NumPy as an engine: what a simulation trains where a test works everything out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Optimizer, Parameters, TensorDescription, check_parameters
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.loop import OutputEngine
from fedgrass.tensors import Array

ENGINE = f"{__name__}:Softmax"
BATCH = 64


def softmax_bundle(folder: Path, optimizer: str = "sgd") -> Bundle:
    model = NewModel(
        engine=ENGINE,
        name="softmax",
        parameters={"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)},
        x=TensorDescription(name="x", shape=(8, 8, 1), dtype="float32"),
        y=TensorDescription(name="y", shape=(), dtype="int32"),
        output=TensorDescription(name="p", shape=(10,), dtype="float32"),
        loss="sparse_categorical_crossentropy",
        batch_size=BATCH,
        optimizer=Optimizer.model_validate({"name": optimizer}),
    )
    return new_bundle(folder, model)


def probabilities(x: Array, w: Array, b: Array) -> Array:
    z = x.reshape(len(x), -1) @ w + b
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


class Softmax(OutputEngine):
    takes_correction = True

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        super().__init__(bundle)
        self.set_parameters(bundle.parameters())

    def get_parameters(self) -> Parameters:
        return {name: value.copy() for name, value in self._values.items()}

    def set_parameters(self, parameters: Parameters) -> None:
        self._values = {k: np.array(v) for k, v in check_parameters(parameters, self.manifest).items()}

    def _begin(self, settings: FitSettings) -> None:
        self._settings, self._anchor = settings, self.get_parameters()

    def _step(self, batch: Batch) -> float:
        x = batch.x.reshape(len(batch.x), -1)
        p = probabilities(x, self._values["w"], self._values["b"])
        error = (p - np.eye(10, dtype=np.float32)[batch.y]) / len(x)
        for name, gradient in (("w", x.T @ error), ("b", error.sum(axis=0))):
            gradient = gradient + self._settings.proximal_mu * (self._values[name] - self._anchor[name])
            gradient = gradient + (self._settings.correction or {}).get(name, 0)
            self._values[name] = np.asarray(self._values[name] - self._settings.learning_rate * gradient, np.float32)
        return float(-np.log(p[np.arange(len(x)), batch.y]).mean())

    def _outputs(self, x: Array) -> Array:
        return probabilities(x, self._values["w"], self._values["b"])

    def _optimizer_state(self) -> list[Array]:
        return []

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        return None


class Stubborn(Softmax):
    """Adds nothing to a gradient, as an engine of one's own may not."""

    takes_correction = False


class InOneCall(Softmax):
    """Trains without asking anybody in between."""

    takes_end = False
