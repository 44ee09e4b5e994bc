"""Recurrent layers of PyTorch: LSTM, GRU and RNN, of several layers and in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.recurrence import CHUNKS, MAX_UNROLLED
from fedgrass.authoring.scan import Scan
from fedgrass.authoring.torch.layers import dropped, times_transposed
from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, Result, require
from fedgrass.authoring.torch.values import Value, permute

Tensor: TypeAlias = tf.Tensor
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]
"""From the input's part of the gates [B, gates], the state and the weights to the next state, output first."""


def _lstm_cell(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    before, cell = state
    recurrent, bias, project = weights
    total = gates + _times(before, recurrent, bias)
    # PyTorch's order of the gates.
    i, f, g, o = tf.split(total, 4, axis=1)
    cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(g)
    output = tf.sigmoid(o) * tf.tanh(cell)
    return (output if project is None else _times(output, project, None)), cell


def _gru_cell(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    (before,) = state
    recurrent, bias, _ = weights
    held = _times(before, recurrent, bias)
    reset_x, update_x, new_x = tf.split(gates, 3, axis=1)
    reset_h, update_h, new_h = tf.split(held, 3, axis=1)
    update = tf.sigmoid(update_x + update_h)
    # PyTorch's GRU resets after the product (as cuDNN), so the two biases of it stay apart.
    new = tf.tanh(new_x + tf.sigmoid(reset_x + reset_h) * new_h)
    # (1 − u)·new + u·before with one multiplication less.
    return (new + update * (before - new),)


def _simple_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
        recurrent, bias, _ = weights
        return (activation(gates + _times(state[0], recurrent, bias)),)

    return cell


def _times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found = times_transposed(x, weight)
    return found if bias is None else tf.nn.bias_add(found, bias)


def _layer(
    cell: Cell, steps: Tensor, state: State, weights: Sequence[Tensor | None], backwards: bool, training: bool
) -> tuple[Tensor, State]:
    """One direction of one layer over steps [T, B, features]; returns outputs [T, B, …] and the last state."""
    count, batch, features = (int(size) for size in steps.shape)
    kernel, recurrent, bias, recurrent_bias, project = weights
    # All steps in one product: only the recurrent part has to wait for the step before.
    gates = _times(tf.reshape(steps, [-1, features]), kernel, bias)
    gates = tf.reshape(gates, [count, batch, -1])
    run = _unrolled if count <= MAX_UNROLLED else partial(_by_chunks, training)
    if not backwards:
        return run(cell, gates, state, (recurrent, recurrent_bias, project))
    outputs, state = run(cell, tf.reverse(gates, [0]), state, (recurrent, recurrent_bias, project))
    return tf.reverse(outputs, [0]), state


def _unrolled(cell: Cell, gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> tuple[Tensor, State]:
    outputs = []
    for step in range(int(gates.shape[0])):
        state = cell(gates[step], state, weights)
        outputs.append(state[0])
    return tf.stack(outputs, axis=0), state


def _by_chunks(
    training: bool, cell: Cell, gates: Tensor, state: State, weights: Sequence[Tensor | None]
) -> tuple[Tensor, State]:
    """As `_unrolled`, by a loop over whole chunks of steps, and the steps that are left over: the graph stays small."""
    count = int(gates.shape[0])
    size = min(CHUNKS, key=lambda size: count % size)
    whole = count - count % size

    def chunk(_: Tensor, slices: list[Tensor], carried: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs, after = _unrolled(cell, slices[0], tuple(carried), weights)
        return list(after), [outputs]

    carried, (outputs,) = Scan(
        chunk,
        slices=[tf.reshape(gates[:whole], [whole // size, size, *gates.shape[1:]])],
        carried=list(state),
        outputs=[tf.TensorSpec([size, *state[0].shape], state[0].dtype)],
    ).run(training=training)
    outputs = tf.reshape(outputs, [whole, *outputs.shape[2:]])
    if whole == count:
        return outputs, tuple(carried)
    rest, after = _unrolled(cell, gates[whole:], tuple(carried), weights)
    return tf.concat([outputs, rest], axis=0), after


def _recurrent(cell: Cell, states: int) -> Callable[..., list[Value]]:
    def apply(
        context: Context,
        x: Value,
        initial: Operand | Sequence[Operand],
        parameters: Sequence[Operand],
        has_biases: bool,
        layers: int,
        dropout: float,
        training: bool,
        both: bool,
        batch_first: bool,
    ) -> list[Value]:
        # A packed sequence has its batch sizes in this place of the schema.
        require(isinstance(has_biases, bool), "a packed sequence", "pad the sequences and use masks")
        require(x.rank == 3, "a recurrent layer without a batch axis", "give it three axes")
        held = [context.value(one).plain for one in (initial if isinstance(initial, (list, tuple)) else [initial])]
        directions = 2 if both else 1
        per = len(parameters) // (layers * directions)
        time_first = permute(x, [1, 0, 2]) if batch_first else x
        steps, ends = time_first.plain, []
        for layer in range(layers):
            found = []
            # Between layers only, as PyTorch has it: never before the first.
            if layer and training:
                steps = dropped(context, Value(steps), dropout).tensor
            for direction in range(directions):
                place = layer * directions + direction
                weights = _weights(context, parameters[place * per : (place + 1) * per], has_biases)
                state = tuple(one[place] for one in held)
                output, end = _layer(cell, steps, state, weights, direction == 1, context.draws is not None)
                found.append(output)
                ends.append(end)
            steps = tf.concat(found, axis=2) if both else found[0]
        output = Value(steps)
        lasts = [Value(tf.stack([end[i] for end in ends], axis=0)) for i in range(states)]
        return [permute(output, [1, 0, 2]) if batch_first else output, *lasts]

    return apply


def _weights(context: Context, found: Sequence[Operand], has_biases: bool) -> list[Tensor | None]:
    tensors = [context.value(one).plain for one in found]
    # The order of torch's flat list: kernel, recurrent, biases if there are any, projection if there is one.
    kernel, recurrent, *rest = tensors
    biases = [rest.pop(0), rest.pop(0)] if has_biases else [None, None]
    return [kernel, recurrent, *biases, rest[0] if rest else None]


OPERATORS["lstm"] = _recurrent(_lstm_cell, 2)
OPERATORS["gru"] = _recurrent(_gru_cell, 1)
OPERATORS["rnn_tanh"] = _recurrent(_simple_cell(tf.tanh), 1)
OPERATORS["rnn_relu"] = _recurrent(_simple_cell(lambda x: tf.nn.relu(x)), 1)


def _single(cell: Cell, states: int) -> Callable[..., Result]:
    def apply(
        context: Context,
        x: Value,
        state: Operand | Sequence[Operand],
        kernel: Operand,
        recurrent: Operand,
        bias: Operand | None = None,
        held_bias: Operand | None = None,
    ) -> Result:
        held = [context.value(one).plain for one in (state if isinstance(state, (list, tuple)) else [state])]
        weights = [
            context.value(one).plain if one is not None else None for one in (kernel, recurrent, bias, held_bias)
        ]
        gates = _times(x.plain, weights[0], weights[2])
        found = cell(gates, tuple(held), (weights[1], weights[3], None))
        return [Value(one) for one in found] if states > 1 else Value(found[0])

    return apply


OPERATORS["lstm_cell"] = _single(_lstm_cell, 2)
OPERATORS["gru_cell"] = _single(_gru_cell, 1)
OPERATORS["rnn_tanh_cell"] = _single(_simple_cell(tf.tanh), 1)
OPERATORS["rnn_relu_cell"] = _single(_simple_cell(lambda x: tf.nn.relu(x)), 1)
