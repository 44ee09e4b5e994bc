"""Reference training by the framework itself, with which an exported model is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.model import KerasModel
from fedgrass.authoring.randomness import drawn, is_random
from fedgrass.authoring.recurrence import MAX_UNROLLED
from fedgrass.bundle import Head, Optimizer, Parameters
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.keras import loss_object, optimizer_object
from fedgrass.engines.metrics import CLASSIFIERS
from fedgrass.engines.several import apart, labels
from fedgrass.tensors import Array

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Steps:
    """What a few steps gave: the losses and, last, the evaluation's before them; then parameters; outputs before them.

    Of an optimizer that divides gradients by their own size, for each trained parameter: ``moments``, what it keeps of the first
    step's gradient (Adam's first moment, else the squares), and ``smallest``, the least size of each gradient in any step.
    """

    losses: Sequence[float]
    parameters: Parameters
    outputs: Sequence[Array]
    moments: Sequence[Array] = ()
    smallest: Sequence[Array] = ()


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
    heads
        The model's outputs with their losses.
    """

    def __init__(self, model: KerasModel, heads: Sequence[Head], optimizer: Optimizer, batch_size: int) -> None:
        self._model, self._heads, self._optimizer, self._batch_size = model, heads, optimizer, batch_size
        self._functions: dict[str, Callable[..., Any]] = {}
        recurrent = [layer for layer in model.keras._flatten_layers() if isinstance(layer, keras.layers.RNN)]
        # A loop in a graph is traced once: a cell of one's own that draws would draw the same in each step.
        drawing = [layer for layer in recurrent if _draws_in_each_step(layer)]
        self._recurrent = bool(recurrent) and not drawing
        for layer in drawing:
            _require_few_steps(layer)

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
        # The user's model must be as it was after the trial.
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
        evaluated_outputs = self._compiled("outputs", self._evaluated)
        outputs = evaluated_outputs(self._inputs(data.x[: self._batch_size]))
        one = evaluated_outputs(self._inputs(data.x[:1]))
        losses_of = [
            # Keras decides by from_logits; outputs that sum to 1 went through a softmax.
            loss_object(head.loss, head.loss_options, from_logits=not _gives_probabilities(head, np.asarray(output)))
            for head, output in zip(self._heads, outputs, strict=True)
        ]
        evaluate = self._compiled("evaluate", lambda x, y: self._loss(losses_of, x, y, None))
        step_of = self._compiled("step", lambda x, y, number: self._gradients(losses_of, x, y, number))
        evaluated = [float(evaluate(*self._given(batch))) for batch in data.batches(self._batch_size)]
        optimizer = optimizer_object(self._optimizer, settings.learning_rate)
        losses = []
        moments: list[Array] = []
        smallest: list[Array] = []
        for step, batch in enumerate(data.batches(self._batch_size, seed=settings.epoch_seed(0))):
            optimizer.learning_rate = self._optimizer.rate_at(settings.learning_rate, step)
            # The seed and number of the device's step: dropout then drops the same places.
            number = tf.constant(settings.masks_seed() + step + 1, tf.int32)
            value, gradients = step_of(*self._given(batch), number)
            optimizer.apply(gradients, model.trainable_variables)
            losses.append(float(value))
            if step == 0:
                moments = [np.array(variable) for variable in _moments(optimizer)]
            smallest = least(smallest, [np.asarray(gradient) for gradient in gradients]) if moments else []
        found = [_row(outputs), _row(one)]
        return Steps([*losses, float(np.mean(evaluated))], self._model.values(), found, moments, smallest)

    def _compiled(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function if the model is recurrent: outside a graph, Keras takes each time step by itself, which is slow.

        Other models are run twice or thrice faster than they are compiled.
        """
        if name not in self._functions:
            self._functions[name] = tf.function(function, autograph=False) if self._recurrent else function
        return self._functions[name]

    def _evaluated(self, x: Sequence[Any]) -> list[Any]:
        with drawn(None):
            return self._outputs(x, training=False)

    def _loss(self, losses: Sequence[Any], x: Sequence[Any], y: Sequence[Any], number: Any) -> Any:
        with drawn(number):
            return self._total(losses, x, y, training=number is not None)

    def _gradients(
        self, losses: Sequence[Any], x: Sequence[Any], y: Sequence[Any], number: Any
    ) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            value = self._loss(losses, x, y, number)
        found = tape.gradient(value, [variable.value for variable in self._model.keras.trainable_variables])
        # Keras' optimizers would square the parts of a token that occurs twice one by one, and not their sum.
        return value, [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]

    def _given(self, batch: Batch) -> tuple[list[Array], list[Array]]:
        return self._inputs(batch.x), labels(batch.y, self._heads)

    def _inputs(self, x: Array) -> list[Array]:
        return apart(x, self._model.inputs) if self._model.inputs else [x]

    def _outputs(self, inputs: Sequence[Any], *, training: bool) -> list[Any]:
        model = self._model.keras
        struct = getattr(model, "_inputs_struct", None)
        given = inputs[0] if struct is None else keras.tree.pack_sequence_as(struct, list(inputs))
        return list(keras.tree.flatten(model(given, training=training)))

    def _total(self, losses: Sequence[Any], x: Sequence[Any], y: Sequence[Any], *, training: bool) -> Any:
        each = zip(self._heads, losses, y, self._outputs(x, training=training), strict=True)
        weighted = [head.weight * loss(true, output) for head, loss, true, output in each]
        return tf.add_n([*weighted, *map(tf.reduce_sum, self._model.keras.losses)])


def _draws_in_each_step(layer: Any) -> bool:
    """Whether a cell, or a layer within one, draws: Keras' own cells draw once, before the first step."""
    inner = [one for one in layer._flatten_layers() if not isinstance(one, (keras.layers.RNN, DropoutRNNCell))]
    return any(is_random(one) for one in inner)


def _require_few_steps(layer: Any) -> None:
    """Refuse a loop of such a cell: its turns draw otherwise than Keras does step by step, so nothing could be compared."""
    try:
        steps = layer.input.shape[1]
    # Keras' way to say that a layer within another one has no input of its own.
    except (AttributeError, ValueError):
        return
    if steps is not None and steps > MAX_UNROLLED:
        raise UnsupportedModelError(
            layer.name,
            f"a cell that draws at random in each of its {steps} steps, beyond {MAX_UNROLLED},",
            f"draw before the layer (Dropout, SpatialDropout1D), or take at most {MAX_UNROLLED} steps; --no-self-test exports it"
            " without a comparison",
        )


def least(before: Sequence[Array], gradients: Sequence[Array]) -> list[Array]:
    """Return the smaller sizes of gradients, element by element; those of ``gradients`` where there are none before."""
    sizes = [np.abs(gradient) for gradient in gradients]
    return [np.minimum(a, b) for a, b in zip(before, sizes, strict=True)] if before else sizes


def _moments(optimizer: Any) -> Sequence[Any]:
    """Return what Keras' optimizer keeps of gradients that it divides by their size; nothing of others."""
    for kind, name in (("Adam", "_momentums"), ("RMSprop", "_velocities"), ("Adagrad", "_accumulators")):
        if isinstance(optimizer, getattr(keras.optimizers, kind)):  # AdamW is an Adam
            found: Sequence[Any] = getattr(optimizer, name)
            return found
    return ()


def _row(outputs: Sequence[Any]) -> Array:
    """Return what several outputs gave in a row, and of one what it gave."""
    arrays = [np.asarray(output) for output in outputs]
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def _gives_probabilities(head: Head, outputs: Array) -> bool:
    if head.loss not in CLASSIFIERS or outputs.min() < 0 or outputs.max() > 1:
        return False
    return "binary" in head.loss or bool(np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


def _move(variables: Sequence[tf.Variable], share: float) -> None:
    generator = np.random.default_rng(0)
    for variable in variables:
        value = variable.numpy()
        variable.assign(value * (1 + share * generator.standard_normal(value.shape).astype(np.float32)))
