"""A Keras model as a function of its weights."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.operators import patched, substituted, unrolled
from fedgrass.bundle import Loss, Parameters, Statistic

Tensor = Any
Call = Callable[[Tensor, Sequence[Tensor], "Tensor | None"], tuple[Tensor, list[Tensor]]]

FINAL_ACTIVATION: dict[str, str] = {
    "sparse_categorical_crossentropy": "softmax",
    "categorical_crossentropy": "softmax",
    "binary_crossentropy": "sigmoid",
}
"""What the loss contains, so that it is left out of the model while that is trained."""


class Model(Protocol):
    """What authoring makes a bundle of: a function of x and of named values, the trained ones before the statistics."""

    name: str
    x: Any
    """``tf.TensorSpec`` of the input; its batch axis is open."""
    output_shape: tuple[int, ...]
    """Of one example."""
    trained_count: int
    """How many of `values` the optimizer changes; the forward pass changes the rest (statistics)."""
    frozen_names: tuple[str, ...]
    draws_masks: bool

    statistics: dict[str, Statistic]
    """What each of these statistics measures."""

    def values(self) -> Parameters:
        """Return the present values by name: the trained weights, then the statistics."""
        ...

    def logits(self, loss: Loss) -> Call:
        """Give the model without the final activation that ``loss`` contains, as `call`."""
        ...

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the output for x [B, …] and new statistics, in operators that train and run fast with variable weights.

        Parameters
        ----------
        values
            In the order of `values`; the frozen weights become constants.
        step
            Number of the training step, int32; none outside training.
        """
        ...

    def infer(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return the output for x [B, …] in the model's own operators, the best ones for constant weights."""
        ...

    def place(self, where: str) -> str:
        """Return the layer that a graph node belongs to, in the words of an error."""
        ...


class KerasModel:
    """A built model's weights in three groups: trained, statistics (set by the forward pass in training), and frozen.

    Raises
    ------
    UnsupportedModelError
        If the model as a whole is none that can be exported.
    """

    def __init__(self, model: Any) -> None:
        _check(model)
        self.keras = model
        self.name = str(model.name)
        self.x = tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype, name="x")
        self.output_shape = tuple(model.outputs[0].shape[1:])
        self._layers = list(model._flatten_layers())
        self._layer_of: dict[str, Any] = {layer.name: layer for layer in self._layers if layer is not model}
        self._trained = list(model.trainable_variables)
        self._statistics = [
            variable
            for layer in self._layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        self._constants = [v.numpy() for v in model.non_trainable_variables]
        self.trained_count = len(self._trained)
        self.draws_masks = any(isinstance(layer, keras.layers.Dropout) for layer in self._layers)
        moving = {id(variable) for variable in [*self._trained, *self._statistics]}
        kinds: tuple[Statistic, ...] = ("mean", "variance")
        self.statistics = dict(zip(map(self._name, self._statistics), itertools.cycle(kinds)))
        self.frozen_names = tuple(self._name(weight) for weight in model.weights if id(weight) not in moving)

    def values(self) -> Parameters:
        """Return the present values by name; see `Model.values`."""
        return {
            self._name(variable): np.array(variable.numpy(), dtype=np.float32)
            for variable in [*self._trained, *self._statistics]
        }

    def logits(self, loss: Loss) -> Call:
        """Give the model without the final activation that ``loss`` contains."""
        expected = FINAL_ACTIVATION.get(loss)
        last = self.keras.outputs[0]._keras_history.operation
        if expected is None:
            return self.call
        if not hasattr(last, "activation") or last.activation.__name__ not in ("linear", expected):
            raise UnsupportedModelError(
                last.name,
                f"this layer before {loss}",
                f"end the model with a Dense or Activation layer of activation {expected} or linear",
            )

        def logits(x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> tuple[Tensor, list[Tensor]]:
            with patched(last, "activation", keras.activations.linear):
                return self.call(x, values, step)

        return logits

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return output and new statistics; see `Model.call`."""
        with substituted(self._layers, step), self._noting_layers():
            return self._call(x, values, training=step is not None)

    def infer(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return the output in Keras' own operators."""
        with unrolled(self._layers):
            return self._call(x, values, training=False)[0]

    def place(self, where: str) -> str:
        """Return the layer that a graph node belongs to."""
        layer = self._layer_of.get(re.sub(r"^gradients(?:_\d+)?/(.*?)_grad/.*", r"\1", where))
        return f"layer {layer.name!r} ({type(layer).__name__})" if layer else where

    def _call(self, x: Tensor, values: Sequence[Tensor], *, training: bool) -> tuple[Tensor, list[Tensor]]:
        given = {id(v): value for v, value in zip([*self._trained, *self._statistics], values, strict=True)}
        other = self.keras.non_trainable_variables
        constants = [
            given[id(v)] if id(v) in given else tf.constant(value)
            for v, value in zip(other, self._constants, strict=True)
        ]
        output, updated = self.keras.stateless_call(list(values[: self.trained_count]), constants, x, training=training)
        after = {id(variable): value for variable, value in zip(other, updated, strict=True)}
        return output, [after[id(variable)] for variable in self._statistics]

    @contextmanager
    def _noting_layers(self) -> Iterator[None]:
        """Note which layer makes each node: the node's name alone does not tell ``dense_1`` from the second ``dense``."""
        call, graph = keras.layers.Layer.__call__, tf.compat.v1.get_default_graph()

        def noted(layer: Any, *args: Any, **kwargs: Any) -> Any:
            before = len(graph.get_operations())
            try:
                return call(layer, *args, **kwargs)
            finally:
                for node in graph.get_operations()[before:] if layer is not self.keras else ():
                    self._layer_of.setdefault(node.name, layer)

        with patched(keras.layers.Layer, "__call__", noted):
            yield

    def _name(self, variable: Any) -> str:
        return str(variable.path.removeprefix(f"{self.name}/"))


@contextmanager
def frozen(model: Any, names: Sequence[str]) -> Iterator[KerasModel]:
    """Give a Keras model with these layers not trainable, besides those that are not anyway."""
    layers = {layer.name: layer for layer in model._flatten_layers() if layer is not model}
    unknown = sorted(set(names) - layers.keys())
    if unknown:
        raise UnsupportedModelError(
            model.name, f"freezing {unknown[0]!r}, which it does not have,", f"choose among {', '.join(layers)}"
        )
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patched(layers[name], "trainable", False))
        yield KerasModel(model)


def _check(model: Any) -> None:
    if not getattr(model, "built", False) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedModelError(
            model.name,
            "a model that is not built, or has several inputs or outputs",
            "give a built model with one of each",
        )
    if None in model.inputs[0].shape[1:]:
        raise UnsupportedModelError(
            model.name, f"input shape {model.inputs[0].shape}", "fix every axis but the first in keras.Input"
        )
    if model.losses:
        raise UnsupportedModelError(model.name, "a regularization loss", "remove it; use proximal_mu or weight decay")
    if not model.trainable_variables:
        raise UnsupportedModelError(model.name, "a model without trainable variables", "unfreeze a layer")
