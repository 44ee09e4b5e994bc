"""What PyTorch's recurrent cells do to each element, and its gradient, with as few operators as it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.gradients import positive

Tensor: TypeAlias = tf.Tensor
Kept: TypeAlias = Sequence[tf.Tensor]


@dataclass(frozen=True)
class Cell:
    """A cell of ``states`` states, of which the first is its output.

    ``forward`` maps the input's and the state's part of the gates [B, gates] and the states to the next states and what
    ``backward`` needs. That maps it and the gradients by the next states to those by both parts of the gates and by the states,
    as far as they do not go through the gates: None of an output that does only that.
    """

    states: int
    forward: Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Sequence[Tensor], Kept]]
    backward: Callable[[Kept, Sequence[Tensor]], tuple[Tensor, Tensor, Sequence[Tensor | None]]]


def _lstm(gates: Tensor, held: Tensor, state: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept]:
    # PyTorch's order of the gates.
    i, f, g, o = tf.split(gates + held, 4, axis=1)
    i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
    cell = f * state[1] + i * g
    shown = tf.tanh(cell)
    return (o * shown, cell), (i, f, g, o, state[1], shown)


def _lstm_gradient(kept: Kept, by: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    i, f, g, o, before, shown = kept
    by_output, by_cell = by
    through = by_output * o
    by_cell = by_cell + (through - through * tf.square(shown))
    by_i, by_f = by_cell * g * i, by_cell * before * f
    by_g, by_o = by_cell * i, through * shown
    # s · (1 − s) as s − s², of which the first factor is in the product already.
    parts = [by_i - by_i * i, by_f - by_f * f, by_g - by_g * tf.square(g), by_o - by_o * o]
    found = tf.concat(parts, 1)
    return found, found, (None, by_cell * f)


def _gru(gates: Tensor, held: Tensor, state: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept]:
    (before,) = state
    reset_x, update_x, new_x = tf.split(gates, 3, axis=1)
    reset_h, update_h, new_h = tf.split(held, 3, axis=1)
    reset, update = tf.sigmoid(reset_x + reset_h), tf.sigmoid(update_x + update_h)
    # PyTorch's GRU resets after the product (as cuDNN), so the two biases of it stay apart.
    new = tf.tanh(new_x + reset * new_h)
    more = before - new
    # (1 − u)·new + u·before with one multiplication less.
    return (new + update * more,), (reset, update, new, new_h, more)


def _gru_gradient(kept: Kept, by: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    reset, update, new, new_h, more = kept
    (by_output,) = by
    direct = by_output * update
    by_new = by_output - direct
    by_new = by_new - by_new * tf.square(new)
    reset_new = by_new * reset
    by_reset, by_update = reset_new * new_h, direct * more
    both = [by_reset - by_reset * reset, by_update - by_update * update]
    return tf.concat([*both, by_new], 1), tf.concat([*both, reset_new], 1), (direct,)


def simple(activation: str) -> Cell:
    """Return Elman's cell, of ``tanh`` or ``relu``."""

    def forward(gates: Tensor, held: Tensor, state: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept]:
        output = tf.tanh(gates + held) if activation == "tanh" else tf.nn.relu(gates + held)
        return (output,), (output,)

    def backward(kept: Kept, by: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        (output,), (by_output,) = kept, by
        found = by_output - by_output * tf.square(output) if activation == "tanh" else by_output * positive(output)
        return found, found, (None,)

    return Cell(1, forward, backward)


LSTM, GRU = Cell(2, _lstm, _lstm_gradient), Cell(1, _gru, _gru_gradient)
