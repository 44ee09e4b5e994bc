"""A SavedModel as a function of its variables: its operations are made again around the values that are trained.

A SavedModel holds one traced call for inference and no layers. Its operations get the gradients of
`fedgrass.authoring.gradients` because they are created again in the graph that is being traced. What training does beside them is
lost: Dropout has left no trace, and nothing tells how a variable that is not trained moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from fedgrass.authoring import heads
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.final import ACTIVATIONS, FINAL_ACTIVATION
from fedgrass.authoring.forward import Forwarded
from fedgrass.authoring.model import Call
from fedgrass.authoring.operators import substituted
from fedgrass.authoring.replay import replay
from fedgrass.bundle import Loss, Parameters, Statistic, TensorDescription

Tensor: TypeAlias = tf.Tensor

_SIGNATURE = "serving_default"


class SavedModel:
    """The signature ``serving_default`` of a SavedModel (Keras' ``model.export``, or ``tf.saved_model.save``).

    Parameters
    ----------
    folder
        With ``saved_model.pb`` in it.
    freeze
        Variables, or layers (what their variables' names begin with), that stay as they are.

    Raises
    ------
    UnsupportedModelError
        If it has no such signature with an open batch axis and no other, or a variable whose part in training is unknown.
    """

    draws_masks = False

    def __init__(self, folder: Path, freeze: Sequence[str] = ()) -> None:
        # Kept: the function refers to its variables weakly.
        self._loaded = tf.saved_model.load(str(folder))
        if _SIGNATURE not in self._loaded.signatures:
            found = ", ".join(self._loaded.signatures) or "none"
            raise UnsupportedModelError(
                str(folder), f"a SavedModel with signatures {found}", f"save one called {_SIGNATURE}"
            )
        self._function = self._loaded.signatures[_SIGNATURE]
        given, outputs = self._function.structured_input_signature[1], self._function.structured_outputs
        # In the order of the function's own arguments.
        inputs = {name: given[name] for name in self._function._arg_keywords}
        self.name = folder.resolve().name
        for x in inputs.values():
            for output in outputs.values():
                self._check_shapes(x, output)
        self.inputs = _described(inputs, "input", self.name)
        self.outputs = _described({name: outputs[name] for name in sorted(outputs)}, "output", self.name)
        x, output = next(iter(inputs.values())), next(iter(outputs.values()))
        self.x = tf.TensorSpec(x.shape, x.dtype, name="x")
        self.output_shape = tuple(output.shape[1:])
        if self.inputs:
            self.x = tf.TensorSpec([None, *heads.row(self.inputs, "x").shape], tf.float32, name="x")
        if self.outputs:
            self.output_shape = heads.row(self.outputs, "y").shape
        self._variables = _named(self._function.variables)
        self.frozen_names = self._freeze(freeze)
        self._trained = tuple(name for name in self._variables if name not in self.frozen_names)
        self._constants = {name: self._variables[name].numpy() for name in self.frozen_names}
        self.trained_count = len(self._trained)
        self.fixed: tuple[str, ...] = ()
        self.statistics: dict[str, Statistic] = {}
        if not self._trained:
            raise UnsupportedModelError(self.name, "a model without trainable variables", "unfreeze a layer")

    def values(self) -> Parameters:
        """Return the present values of the trained variables by name."""
        return {name: np.array(self._variables[name].numpy(), dtype=np.float32) for name in self._trained}

    def logits(self, losses: Sequence[Loss]) -> Call:
        """Give the model without the final activations that its outputs' losses contain."""

        def logits(x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> Forwarded:
            each = zip(losses, self._outputs(x, values, step), strict=True)
            return self._forwarded([_without_activation(output, loss) for loss, output in each])

        return logits

    def call(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None = None) -> Forwarded:
        """Return the outputs for x [B, …], in operators that train; there are no statistics."""
        return self._forwarded(self._outputs(x, values, step))

    def _outputs(self, x: Tensor, values: Sequence[Tensor], step: Tensor | None) -> Sequence[Tensor]:
        with substituted(step):
            return self.infer(heads.apart(x, self.inputs) if self.inputs else [x], values)

    def _forwarded(self, outputs: Sequence[Tensor]) -> Forwarded:
        return Forwarded(heads.joined(outputs) if self.outputs else outputs[0])

    def constraints(self) -> list[None]:
        """Return none: a SavedModel does not tell."""
        return [None] * self.trained_count

    def infer(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs for inputs [B, …]."""
        given = self._constants | dict(zip(self._trained, values, strict=True))
        resources = {id(variable.handle): given[name] for name, variable in self._variables.items()}
        return replay(self._function, inputs, resources)

    def takes(self) -> tuple[None, None]:
        """Return nothing: a SavedModel does not tell."""
        return None, None

    def vocabularies(self) -> dict[str, int]:
        """Return nothing: a SavedModel does not tell."""
        return {}

    def place(self, where: str) -> str:
        """Return the node, whose path has the layer's name in it."""
        return where.removeprefix("gradients/")

    def _check_shapes(self, x: tf.TensorSpec, output: tf.TensorSpec) -> None:
        if (
            None in (x.shape.rank, output.shape.rank)
            or x.shape[0] is not None
            or None in [*x.shape[1:], *output.shape[1:]]
        ):
            raise UnsupportedModelError(
                self.name,
                f"a SavedModel of input shape {x.shape} and output shape {output.shape}",
                "fix every axis but the first, and only those",
            )

    def _freeze(self, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            if not any(_within(variable, name) for variable in self._variables):
                raise UnsupportedModelError(
                    self.name,
                    f"freezing {name!r}, which it does not have,",
                    f"choose among {', '.join(self._variables)}, or what they begin with",
                )
        frozen = tuple(v for v in self._variables if any(_within(v, name) for name in names))
        for name, variable in self._variables.items():
            # Batch normalization's statistics would stay as they are, and the model train wrongly without a sign.
            if not variable.trainable and name not in frozen:
                raise UnsupportedModelError(
                    name,
                    "a variable that is not trained, such as the statistics of a batch normalization, in a SavedModel, "
                    "which does not say how training moves it,",
                    f"keep it as it is with --freeze {name}, or export the .keras file",
                )
        return frozen


def _described(tensors: Mapping[str, tf.TensorSpec], what: str, model: str) -> tuple[TensorDescription, ...]:
    """Describe several inputs or outputs; nothing if there is one."""
    if len(tensors) == 1:
        return ()
    return heads.described([(name, spec.shape[1:], spec.dtype.name) for name, spec in tensors.items()], what, model)


def _without_activation(output: Tensor, loss: Loss) -> Tensor:
    # The last operator is all that tells of an activation: there are no layers.
    expected = FINAL_ACTIVATION.get(loss)
    if expected is None or output.op.type not in ACTIVATIONS:
        return output
    if output.op.type.lower() != expected:
        advice = f"end the model with {expected} or with logits"
        raise UnsupportedModelError(output.op.name, f"{output.op.type} before {loss}", advice)
    return output.op.inputs[0]


def _named(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Variables by name, without the name of Keras' model before layer and variable."""
    names = [variable.name.removesuffix(":0") for variable in variables]
    first = {name.split("/")[0] for name in names}
    if len(first) == 1 and all(name.count("/") > 1 for name in names):
        names = [name.split("/", 1)[1] for name in names]
    for name in names:
        if names.count(name) > 1:
            raise UnsupportedModelError(
                name, "a name that several variables have", "give each tf.Variable its own name"
            )
    return dict(zip(names, variables, strict=True))


def _within(variable: str, name: str) -> bool:
    return variable == name or variable.startswith(f"{name}/")
