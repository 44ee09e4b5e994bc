"""Recurrent layers of PyTorch: LSTM, GRU and RNN, of several layers and in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.convolution import product, transposed_product
from fedgrass.authoring.recurrence import MAX_UNROLLED, chunk_size
from fedgrass.authoring.scan import Scan
from fedgrass.authoring.torch.cells import GRU, LSTM, Cell, simple
from fedgrass.authoring.torch.layers import dropped
from fedgrass.authoring.torch.registry import OPERATORS, Context, Operand, Result, require
from fedgrass.authoring.torch.values import Value, permute
from fedgrass.authoring.windows import concat

Tensor: TypeAlias = tf.Tensor
Tensors: TypeAlias = list[tf.Tensor]


@dataclass(frozen=True)
class _Weights:
    """[gates, features], [gates, hidden] and what else a layer has: biases [gates], and a projection of an LSTM's output."""

    kernel: Tensor
    recurrent: Tensor
    bias: Tensor | None = None
    recurrent_bias: Tensor | None = None
    project: Tensor | None = None

    @classmethod
    def of(cls, context: Context, found: Sequence[Operand], has_biases: bool) -> _Weights:
        """Sort torch's flat list: kernel, recurrent, biases if there are any, projection if there is one."""
        kernel, recurrent, *rest = (context.value(one).plain for one in found)
        biases = [rest.pop(0), rest.pop(0)] if has_biases else [None, None]
        return cls(kernel, recurrent, *biases, *rest)

    def list(self) -> Tensors:
        """Those that there are."""
        found = (self.kernel, self.recurrent, self.bias, self.recurrent_bias, self.project)
        return [one for one in found if one is not None]

    def like(self, tensors: Sequence[Tensor]) -> _Weights:
        """Return others in the places of `list`."""
        given = iter(tensors)
        whole = (self.kernel, self.recurrent, self.bias, self.recurrent_bias, self.project)
        return _Weights(*(None if one is None else next(given) for one in whole))


def _steps(
    cell: Cell, trains: bool, weights: _Weights, steps: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, Tensors]:
    """Take some steps [T, B, features]; returns outputs [T, B, …] and the last state.

    Its gradient is written out: each step's has one product, and those by the weights are one product of all steps.
    """

    def run(steps: Tensor, *given: Tensor) -> tuple[Tensors, Callable[..., Tensors]]:
        walk = _Walk(cell, trains, weights.like(given[cell.states :]), steps)
        return walk.forwards(given[: cell.states]), walk.backwards

    found = tf.custom_gradient(run)(steps, *state, *weights.list())
    return found[0], list(found[1:])


class _Walk:
    """The steps of one layer, kept for the way back."""

    def __init__(self, cell: Cell, trains: bool, weights: _Weights, steps: Tensor) -> None:
        self._cell, self._weights = cell, weights
        # A constant weight keeps LiteRT's FULLY_CONNECTED; a variable one goes by way of the fast product.
        self._times = partial(product, transpose_b=True) if trains else partial(tf.matmul, transpose_b=True)
        self._count, self._batch, features = (int(size) for size in steps.shape)
        self._flat = tf.reshape(steps, [-1, features])

    def forwards(self, state: Sequence[Tensor]) -> Tensors:
        """Return outputs and the last state."""
        weights = self._weights
        # All steps in one product: only the recurrent part has to wait for the step before.
        gates = self._parts(_plus(self._times(self._flat, weights.kernel), weights.bias))
        self._before, self._kept, self._inner, outputs = [], [], [], []
        for gate in gates:
            held = _plus(self._times(state[0], weights.recurrent), weights.recurrent_bias)
            self._before.append(state[0])
            state, kept = self._cell.forward(gate, held, state)
            self._kept.append(kept)
            self._inner.append(state[0])
            if weights.project is not None:
                state = (self._times(state[0], weights.project), *state[1:])
            outputs.append(state[0])
        return [tf.reshape(concat(outputs, 0), [self._count, self._batch, -1]), *state]

    def backwards(self, upstream: Tensor, *after: Tensor) -> Tensors:
        """Return gradients by the steps, the first state and the weights."""
        weights, by = self._weights, list(after)
        by_gates, by_held, by_outputs = [], [], []
        arriving = self._parts(tf.reshape(upstream, [self._count * self._batch, -1]))
        for step in reversed(range(self._count)):
            by[0] = by[0] + arriving[step]
            by_outputs.append(by[0])
            if weights.project is not None:
                by[0] = product(by[0], weights.project)
            gates, held, direct = self._cell.backward(self._kept[step], by)
            by_gates.append(gates)
            by_held.append(held)
            through = product(held, weights.recurrent)
            by = [through if direct[0] is None else through + direct[0], *direct[1:]]
        gates, held = (concat(found[::-1], 0) for found in (by_gates, by_held))
        found = [transposed_product(gates, self._flat), transposed_product(held, concat(self._before, 0))]
        if weights.bias is not None:
            found += [tf.reduce_sum(gates, 0), tf.reduce_sum(held, 0)]
        if weights.project is not None:
            found.append(transposed_product(concat(by_outputs[::-1], 0), concat(self._inner, 0)))
        by_steps = tf.reshape(product(gates, weights.kernel), [self._count, self._batch, -1])
        return [by_steps, *by, *found]

    def _parts(self, rows: Tensor) -> Tensors:
        """Each step's rows."""
        size, width = self._batch, int(rows.shape[1])
        return [tf.slice(rows, [step * size, 0], [size, width]) for step in range(self._count)]


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _layer(
    cell: Cell, context: Context, steps: Tensor, state: Sequence[Tensor], weights: _Weights, backwards: bool
) -> tuple[Tensor, Tensors]:
    """One direction of one layer over steps [T, B, features]; returns outputs [T, B, …] and the last state."""
    run = partial(_steps, cell, context.trains, weights)
    if int(steps.shape[0]) > MAX_UNROLLED:
        run = partial(_by_chunks, run, context.draws is not None)
    if not backwards:
        return run(steps, state)
    outputs, state = run(tf.reverse(steps, [0]), state)
    return tf.reverse(outputs, [0]), list(state)


def _by_chunks(
    run: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Tensors]],
    training: bool,
    steps: Tensor,
    state: Sequence[Tensor],
) -> tuple[Tensor, Tensors]:
    """As `_steps`, by a loop over whole chunks of steps, and the steps that are left over: the graph stays small."""
    count = int(steps.shape[0])
    size = chunk_size(count)
    whole = count - count % size

    def chunk(_: Tensor, slices: Tensors, carried: Tensors) -> tuple[Tensors, Tensors]:
        outputs, after = run(slices[0], carried)
        return after, [outputs]

    carried, (outputs,) = Scan(
        chunk,
        slices=[tf.reshape(steps[:whole], [whole // size, size, *steps.shape[1:]])],
        carried=list(state),
        outputs=[tf.TensorSpec([size, *state[0].shape], state[0].dtype)],
    ).run(training=training)
    outputs = tf.reshape(outputs, [whole, *outputs.shape[2:]])
    if whole == count:
        return outputs, carried
    rest, after = run(steps[whole:], carried)
    return tf.concat([outputs, rest], axis=0), after


def _recurrent(cell: Cell) -> Callable[..., list[Value]]:
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
                weights = _Weights.of(context, parameters[place * per : (place + 1) * per], has_biases)
                output, end = _layer(cell, context, steps, [one[place] for one in held], weights, direction == 1)
                found.append(output)
                ends.append(end)
            steps = tf.concat(found, axis=2) if both else found[0]
        output = Value(steps)
        lasts = [Value(tf.stack([end[i] for end in ends], axis=0)) for i in range(cell.states)]
        return [permute(output, [1, 0, 2]) if batch_first else output, *lasts]

    return apply


OPERATORS["lstm"] = _recurrent(LSTM)
OPERATORS["gru"] = _recurrent(GRU)
OPERATORS["rnn_tanh"] = _recurrent(simple("tanh"))
OPERATORS["rnn_relu"] = _recurrent(simple("relu"))


def _single(cell: Cell) -> Callable[..., Result]:
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
        parameters = [kernel, recurrent] if bias is None else [kernel, recurrent, bias, held_bias]
        weights = _Weights.of(context, parameters, bias is not None)
        _, found = _steps(cell, context.trains, weights, x.plain[None], held)
        return [Value(one) for one in found] if cell.states > 1 else Value(found[0])

    return apply


OPERATORS["lstm_cell"] = _single(LSTM)
OPERATORS["gru_cell"] = _single(GRU)
OPERATORS["rnn_tanh_cell"] = _single(simple("tanh"))
OPERATORS["rnn_relu_cell"] = _single(simple("relu"))
