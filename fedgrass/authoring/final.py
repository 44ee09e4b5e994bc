"""A model's last activation, which a cross-entropy contains: it is left out of the model while that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.patching import patched

Tensor: TypeAlias = tf.Tensor

FINAL_ACTIVATION: dict[str, str] = {
    "sparse_categorical_crossentropy": "softmax",
    "categorical_crossentropy": "softmax",
    "categorical_focal_crossentropy": "softmax",
    "binary_crossentropy": "sigmoid",
    "binary_focal_crossentropy": "sigmoid",
}
"""What the loss contains."""

ACTIVATIONS = {"Softmax", "Sigmoid", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Tanh", "Softplus", "Softsign"}
"""Operators after which a tensor is no logit."""

# Operators that move values without changing them.
_CARRIED = {"Reshape", "Squeeze", "ExpandDims", "Identity"}


class Final:
    """How the last activation of a Keras model is left out for a loss.

    Parameters
    ----------
    output
        Number of the output that the loss is of.

    Raises
    ------
    UnsupportedModelError
        If the model ends in another activation than the loss contains.
    """

    def __init__(self, model: Any, loss: str, output: int = 0) -> None:
        self._loss = loss
        self._expected = FINAL_ACTIVATION.get(loss)
        self._last = _last(model.outputs[output])
        # Only a layer that is called once: changed for one use it would be changed for all.
        self._at_the_layer = self._expected is not None and self._is_alone() and self._activation() is not None
        if self._at_the_layer and self._activation() not in ("linear", self._expected):
            raise self._unsupported(self._last.name)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Trace the model inside this."""
        with ExitStack() as stack:
            # A Softmax layer has no activation to take away, so its call is.
            if self._at_the_layer and isinstance(self._last, keras.layers.Softmax):
                stack.enter_context(patched(self._last, "call", lambda inputs, mask=None: inputs))
            elif self._at_the_layer:
                stack.enter_context(patched(self._last, "activation", keras.activations.linear))
            yield

    def stripped(self, output: Tensor) -> Tensor:
        """Return the logits of a traced output, where no layer could be told to leave its activation out."""
        if self._expected is None or self._at_the_layer:
            return output
        if output.op.type in _CARRIED:
            return tf.reshape(self.stripped(output.op.inputs[0]), output.shape)
        if output.op.type not in ACTIVATIONS:
            return output
        if output.op.type.lower() != self._expected:
            raise self._unsupported(output.op.name)
        return output.op.inputs[0]

    def _activation(self) -> str | None:
        if isinstance(self._last, keras.layers.Softmax):
            last_axis = len(self._last.output.shape) - 1
            # The loss's softmax is over the last axis.
            return "softmax" if self._last.axis in (-1, last_axis) else "softmax over another axis"
        found = getattr(self._last, "activation", None)
        return None if found is None else str(getattr(found, "__name__", type(found).__name__))

    def _is_alone(self) -> bool:
        return len(getattr(self._last, "_inbound_nodes", ())) <= 1

    def _unsupported(self, where: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            where,
            f"this layer before {self._loss}",
            f"end the model with a Dense or Activation layer of activation {self._expected} or linear",
        )


def _last(tensor: Any) -> Any:
    """Return the operation that gives a model's output, inside nested models too."""
    # A nested model is an operation like any other: its own last operation is wanted.
    while True:
        history = tensor._keras_history
        operation = history.operation
        nested = getattr(operation, "outputs", None) if isinstance(operation, keras.Model) else None
        if nested and not isinstance(nested[0], tf.Tensor) and hasattr(nested[history.tensor_index], "_keras_history"):
            if nested[history.tensor_index] is tensor:
                return operation
            tensor = nested[history.tensor_index]
            continue
        while isinstance(operation, keras.layers.TimeDistributed):
            operation = operation.layer
        return operation
