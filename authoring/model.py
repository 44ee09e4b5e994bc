"""A Keras model as a function of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from authoring.operators import exchanged, unrolled
from fedgrass.bundle import Parameters

Tensor = Any


class KerasModel:
    """A model's weights in three groups: trained, statistics (set by the forward pass in training), and frozen."""

    def __init__(self, model: Any) -> None:
        self.keras = model
        self.trained = list(model.trainable_variables)
        self.statistics = [
            variable
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        self._frozen = [v.numpy() for v in model.non_trainable_variables]
        self.draws_masks = any(isinstance(layer, keras.layers.Dropout) for layer in model._flatten_layers())

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Names of the weights that stay as they are."""
        moving = {id(variable) for variable in [*self.trained, *self.statistics]}
        return tuple(self._name(weight) for weight in self.keras.weights if id(weight) not in moving)

    def values(self) -> Parameters:
        """Present values by name: the trained weights, then the statistics."""
        return {
            self._name(variable): np.array(variable.numpy(), dtype=np.float32)
            for variable in [*self.trained, *self.statistics]
        }

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the output for x [B, …] and new statistics, in operators that train and run fast with variable weights.

        Parameters
        ----------
        values
            In the order of `values`; the frozen weights become constants.
        step
            Number of the training step, int32; none outside training.
        """
        with exchanged(self.keras, step):
            return self._call(x, values, training=step is not None)

    def infer(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return the output for x [B, …] in Keras' own operators, the best ones for constant weights."""
        with unrolled(self.keras):
            return self._call(x, values, training=False)[0]

    def _call(self, x: Tensor, values: Sequence[Tensor], *, training: bool) -> tuple[Tensor, list[Tensor]]:
        given = {id(v): value for v, value in zip([*self.trained, *self.statistics], values, strict=True)}
        other = self.keras.non_trainable_variables
        constants = [
            given[id(v)] if id(v) in given else tf.constant(value) for v, value in zip(other, self._frozen, strict=True)
        ]
        output, updated = self.keras.stateless_call(list(values[: len(self.trained)]), constants, x, training=training)
        after = {id(variable): value for variable, value in zip(other, updated, strict=True)}
        return output, [after[id(variable)] for variable in self.statistics]

    def _name(self, variable: Any) -> str:
        return str(variable.path.removeprefix(f"{self.keras.name}/"))
