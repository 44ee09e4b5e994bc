"""Recurrent layers: unrolled if short, else a loop over chunks of about ten steps.

Keras' loop keeps every step's values for the gradient in lists of tensors, which LiteRT lacks; `fedgrass.authoring.scan`
keeps the states before each chunk only. A chunk is what is worth a turn of a loop: LiteRT copies what a loop carries at
each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import keras
import tensorflow as tf
from keras import tree
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell
from tensorflow.python.framework.func_graph import FuncGraph

from fedgrass.authoring.randomness import is_random
from fedgrass.authoring.scan import Scan
from fedgrass.authoring.windows import concat

Tensor: TypeAlias = tf.Tensor
Tensors: TypeAlias = list[tf.Tensor]
Nested: TypeAlias = "Tensor | Sequence[Nested] | Mapping[str, Nested]"
"""Tensors in the structure that a cell gives them, as ``tf.nest`` has it."""
Step: TypeAlias = Callable[[Nested, Nested], tuple[Nested, Nested]]
"""A cell: from one step\'s inputs and the states to outputs and states."""

MAX_UNROLLED = 20
"""Steps up to which a copy of the cell for each is faster than a loop."""

CHUNKS = (10, 11, 9, 12, 8, 13, 7)
"""Steps in a chunk: the first of these that leaves the fewest over."""


def chunk_size(steps: int) -> int:
    """Return how many steps each chunk has."""
    # What is left over is traced once more beside the loop's body, so the fewer the smaller the graph.
    return min(CHUNKS, key=lambda size: steps % size)


Turn = Callable[[Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class Recurrence:
    """How layers are traced.

    Parameters
    ----------
    training
        Whether gradients will be asked for.
    turns
        Gives, for a layer, what is entered around each chunk with its number [1], so that what is drawn at random differs by
        chunk and is the same when the chunk runs again.
    """

    training: bool = False
    turns: Callable[[], Turn] = lambda: lambda _: nullcontext()

    def rnn(
        self,
        step_function: Step,
        inputs: Nested,
        initial_states: Nested,
        go_backwards: bool = False,
        mask: Tensor | None = None,
        constants: Sequence[Tensor] | None = None,
        unroll: bool = False,
        input_length: object = None,
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        return_all_outputs: bool = True,
    ) -> tuple[Nested, Nested, Tensors]:
        """Stand for ``keras.src.backend.rnn``, whose arguments and results these are.

        Parameters
        ----------
        step_function
            Computes one step, from a step's inputs [B, …] and the states.
        inputs
            [B, steps, …], or with the steps first if ``time_major``.
        initial_states
            Of the first step.
        go_backwards
            Whether the last step comes first.
        mask
            bool [B, steps]; a step that is False leaves the states as they are.
        constants
            Given to each step beside the states.
        unroll, input_length
            Not used: a loop is what LiteRT trains.
        time_major
            Whether inputs and outputs have the steps first.
        zero_output_for_mask
            Whether a masked step gives zeros, and not the output before.
        return_all_outputs
            Whether all steps' outputs are returned, or the last one.

        Returns
        -------
        tuple
            The last output, all outputs, and the states after the last step.
        """
        del unroll, input_length
        sequences = [tf.convert_to_tensor(x) for x in tree.flatten(inputs)]
        if mask is not None:
            # The mask travels as one more sequence: then a chunk of steps is cut out of it as of the others.
            sequences.append(tf.cast(tf.reshape(mask, mask.shape[:2]), tf.float32))
        sequences = [x if time_major else _swapped(x) for x in sequences]
        if go_backwards:
            sequences = [tf.reverse(x, [0]) for x in sequences]
        states = tuple(initial_states)
        cell = _Cell(step_function, inputs, states, tuple(constants or ()), zero_output_for_mask, return_all_outputs)
        shapes = cell.output_shapes(sequences)
        carried = tree.flatten(states)
        if mask is not None:
            # A masked step repeats the output before it, so that is carried like a state; before the first step it is zero.
            carried += [tf.zeros(output.shape) for output in tree.flatten(shapes)]
        # Few steps are cheaper copied than looped over: LiteRT's WHILE copies what it carries at each turn.
        if sequences[0].shape[0] <= MAX_UNROLLED:
            carried, outputs = cell.steps(sequences, carried)
        else:
            carried, outputs = self._by_chunks(cell, sequences, carried, tree.flatten(shapes))
        last = [output[-1] for output in outputs]
        whole = [output if time_major else _swapped(output) for output in outputs]
        found = tree.pack_sequence_as(states, carried[: len(tree.flatten(states))])
        return tree.pack_sequence_as(shapes, last), tree.pack_sequence_as(shapes, whole), list(found)

    def _by_chunks(
        self, cell: _Cell, sequences: Tensors, carried: Tensors, shapes: Sequence[tf.TensorSpec]
    ) -> tuple[Tensors, Tensors]:
        """As `_Cell.steps`: whole chunks, and the steps that are left over."""
        steps = sequences[0].shape[0]
        size = chunk_size(steps)
        whole = steps - steps % size
        count = size if cell.all_outputs else 1
        turn = self.turns()

        def chunk(number: Tensor, slices: Tensors, carried: Tensors) -> tuple[Tensors, Tensors]:
            with turn(number):
                return cell.steps(slices, carried)

        carried, outputs = Scan(
            chunk,
            slices=[tf.reshape(x[:whole], [whole // size, size, *x.shape[1:]]) for x in sequences],
            carried=carried,
            outputs=[tf.TensorSpec([count, *x.shape], x.dtype) for x in shapes],
        ).run(training=self.training)
        outputs = [tf.reshape(x, [-1, *x.shape[2:]]) for x in outputs]
        if whole == steps:
            return carried, outputs
        # Numbered like one more chunk, lest its dropout draw what another chunk drew.
        with turn(tf.constant([whole // size])):
            carried, rest = cell.steps([x[whole:] for x in sequences], carried)
        return carried, [tf.concat(parts, 0) for parts in zip(outputs, rest, strict=True)]


@dataclass(frozen=True)
class _Cell:
    """A cell over flat lists of tensors.

    The sequences [T, B, …] are the inputs and, if there is a mask, that [T, B] of zeros and ones. Carried from step to
    step are the states and, with a mask, the outputs, which a masked step gives again.
    """

    step: Step
    inputs: Nested
    states: Nested
    constants: tuple[Tensor, ...]
    zero_if_masked: bool
    all_outputs: bool

    def output_shapes(self, sequences: Sequence[Tensor]) -> Nested:
        """``tf.TensorSpec`` of each output, in the cell's own structure; traced beside the graph."""
        # In a graph that is thrown away: traced in the real one, the probe's operators would stay in the model.
        with FuncGraph("output_shapes").as_default():
            inputs = [tf.zeros(x.shape[1:], x.dtype) for x in sequences]
            outputs, _ = self._call(inputs, [tf.zeros(x.shape, x.dtype) for x in tree.flatten(self.states)])
            return tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), outputs)

    def steps(self, sequences: Sequence[Tensor], carried: Sequence[Tensor]) -> tuple[Tensors, Tensors]:
        """Return what is carried on, and the outputs [T, B, …], or [1, B, …] of the last step."""
        found: list[Tensors] = []
        carried = list(carried)
        for inputs in zip(*(tf.unstack(x) for x in sequences), strict=True):
            outputs, carried = self._one(list(inputs), carried)
            found = [*found, outputs] if self.all_outputs else [outputs]
        return carried, [concat([tf.expand_dims(x, 0) for x in times], 0) for times in zip(*found, strict=True)]

    def _one(self, inputs: Tensors, carried: Tensors) -> tuple[Tensors, Tensors]:
        count = len(tree.flatten(self.states))
        states, shown = carried[:count], carried[count:]
        found, new_states = (tree.flatten(part) for part in self._call(inputs, states))
        if not shown:
            return found, new_states
        # The mask lies last among the inputs: `Recurrence.rnn` put it there.
        after = [_chosen(inputs[-1], new, old) for new, old in zip(new_states, states, strict=True)]
        old_outputs = [tf.zeros_like(x) for x in shown] if self.zero_if_masked else shown
        outputs = [_chosen(inputs[-1], new, old) for new, old in zip(found, old_outputs, strict=True)]
        return outputs, [*after, *outputs]

    def _call(self, inputs: Tensors, states: Tensors) -> tuple[Nested, Nested]:
        given = tree.pack_sequence_as(self.inputs, inputs[: len(tree.flatten(self.inputs))])
        return self.step(given, (*tree.pack_sequence_as(self.states, states), *self.constants))


def time_distributed(
    layer: keras.Layer, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
) -> Tensor:
    """Stand for ``keras.layers.TimeDistributed.call``: all steps at once, as more examples.

    Parameters
    ----------
    layer
        The layer around another one.
    inputs
        [B, T, …].
    training
        Passed on to the inner layer, if that takes it.
    mask
        [B, T, …], likewise.
    """
    wrapped = layer.layer
    inner = list(wrapped._flatten_layers())
    if any(isinstance(x, keras.layers.BatchNormalization) or is_random(x) for x in inner):
        return _time_distributed(layer, inputs, training=training, mask=mask)
    batch, steps = inputs.shape[:2]
    options: dict[str, bool | Tensor] = {"training": training} if wrapped._call_has_training_arg else {}
    if mask is not None and wrapped._call_has_mask_arg:
        options["mask"] = tf.reshape(mask, [batch * steps, *mask.shape[2:]])
    found = wrapped.call(tf.reshape(inputs, [batch * steps, *inputs.shape[2:]]), **options)
    return keras.tree.map_structure(lambda x: tf.reshape(x, [batch, steps, *x.shape[1:]]), found)


_time_distributed = keras.layers.TimeDistributed.call


def conv_lstm(cell: keras.Layer, inputs: Tensor, states: Tensors, training: bool = False) -> tuple[Tensor, Tensors]:
    """Stand for ``ConvLSTMCell.call``: two convolutions a step, where Keras makes eight of a quarter of the filters.

    Parameters
    ----------
    cell
        The cell.
    inputs
        [B, …, C], one step.
    states
        Output and memory, [B, …, filters] each.
    training
        Whether the cell's dropout draws; with it, each gate has a mask of its own, and Keras' own cell is called.
    """
    drops = training and (cell.dropout > 0 or cell.recurrent_dropout > 0)
    if drops or cell.data_format == "channels_first":
        found: tuple[Tensor, Tensors] = _conv_lstm(cell, inputs, states, training=training)
        return found
    before, memory = states
    sums = cell.input_conv(inputs, cell.kernel, padding=cell.padding)
    sums += cell.recurrent_conv(before, cell.recurrent_kernel)
    gates = tf.split(sums + cell.bias if cell.use_bias else sums, 4, axis=-1)
    enters, keeps, shows = (cell.recurrent_activation(gates[at]) for at in (0, 1, 3))
    memory = keeps * memory + enters * cell.activation(gates[2])
    output = shows * cell.activation(memory)
    return output, [output, memory]


_conv_lstm = ConvLSTMCell.call


def _swapped(x: Tensor) -> Tensor:
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


def _chosen(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where the mask [B] is 1, ``old`` where it is 0."""
    mask = tf.reshape(mask, [-1] + [1] * (new.shape.rank - 1))
    return mask * new + (1.0 - mask) * old
