"""The framework's own training of a model, which an exported one is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from fedgrass.authoring.compiled import Objective
from fedgrass.authoring.model import KerasModel
from fedgrass.authoring.randomness import drawn
from fedgrass.bundle import Optimizer, Parameters
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.keras import loss_object, optimizer_object
from fedgrass.engines.metrics import CLASSIFIERS
from fedgrass.tensors import Array


@dataclass(frozen=True)
class Steps:
    """What a few steps gave: the losses and, last, the evaluation's before them; then parameters; outputs before them."""

    losses: Sequence[float]
    parameters: Parameters
    outputs: Sequence[Array]


class Reference(Protocol):
    """A framework that can train the model which was exported."""

    def steps(self, data: ArrayDataset, settings: FitSettings, *, moved_by: float = 0.0) -> Steps:
        """Take one step on each batch, as the engine orders them, from the model's present parameters.

        Parameters
        ----------
        data
            The examples.
        settings
            Rate, seed and the rest, as the engine gets them.
        moved_by
            Share by which each parameter is changed first: shows how far rounding alone can lead.

        Returns
        -------
        Steps
            What the steps gave.
        """
        ...


class KerasReference:
    """Keras' layers, losses and optimizers, run as they are; only random layers draw what they draw on a device.

    Parameters
    ----------
    given
        The loss and the optimizer that the model was compiled with or that the caller gave, if they are Keras' objects.
    """

    def __init__(self, model: KerasModel, objective: Objective, optimizer: Optimizer, batch_size: int) -> None:
        self._model, self._objective, self._optimizer, self._batch_size = model, objective, optimizer, batch_size

    def steps(self, data: ArrayDataset, settings: FitSettings, *, moved_by: float = 0.0) -> Steps:
        """Take the steps with Keras, and put the model's weights back.

        Parameters
        ----------
        data
            The examples.
        settings
            As the engine gets them.
        moved_by
            Share by which each parameter is changed first.

        Returns
        -------
        Steps
            What the steps gave.
        """
        model = self._model.keras
        kept = [variable.numpy() for variable in model.variables]
        try:
            if moved_by:
                _move(model.trainable_variables, moved_by)
            return self._steps(data, settings)
        finally:
            for variable, value in zip(model.variables, kept, strict=True):
                variable.assign(value)

    def _steps(self, data: ArrayDataset, settings: FitSettings) -> Steps:
        model = self._model.keras
        with drawn(None):
            outputs = np.asarray(model(data.x[: self._batch_size], training=False))
            one = np.asarray(model(data.x[:1], training=False))
        loss = loss_object(
            self._objective.loss, self._objective.options, from_logits=not self._gives_probabilities(outputs)
        )
        evaluated = []
        for batch in data.batches(self._batch_size):
            with drawn(None):
                evaluated.append(_total(model, loss, batch.x, batch.y, training=False))
        optimizer = optimizer_object(self._optimizer, settings.learning_rate)
        losses = []
        for step, batch in enumerate(data.batches(self._batch_size, seed=settings.epoch_seed(0))):
            optimizer.learning_rate = self._optimizer.rate_at(settings.learning_rate, step)
            with drawn(tf.constant(settings.masks_seed() + step + 1, tf.int32)), tf.GradientTape() as tape:
                value = _total(model, loss, batch.x, batch.y, training=True)
            found = tape.gradient(value, [variable.value for variable in model.trainable_variables])
            # Keras' optimizers would square the parts of a token that occurs twice one by one, and not their sum.
            gradients = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]
            optimizer.apply(gradients, model.trainable_variables)
            losses.append(float(value))
        return Steps([*losses, float(np.mean(evaluated))], self._model.values(), [outputs, one])

    def _gives_probabilities(self, outputs: Array) -> bool:
        if self._objective.loss not in CLASSIFIERS or outputs.min() < 0 or outputs.max() > 1:
            return False
        return "binary" in self._objective.loss or bool(np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


def _total(model: Any, loss: Any, x: Array, y: Array, *, training: bool) -> Any:
    value = loss(y, model(x, training=training))
    return tf.add_n([value, *model.losses])


def _move(variables: Sequence[Any], share: float) -> None:
    generator = np.random.default_rng(0)
    for variable in variables:
        value = variable.numpy()
        variable.assign(value * (1 + share * generator.standard_normal(value.shape).astype(np.float32)))
