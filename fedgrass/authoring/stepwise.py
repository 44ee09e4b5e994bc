"""Keras' own recurrence, drawing at each step what a device draws there.

A cell may draw in each step, as a cell of one's own with Dropout inside does. A device draws by chunk of steps
(`fedgrass.authoring.recurrence`); the reference with which it is compared takes the steps one by one, and must draw alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from keras import tree
from keras.src import backend
from tensorflow.python.framework.func_graph import FuncGraph

from fedgrass.authoring.randomness import Draws
from fedgrass.authoring.recurrence import MAX_UNROLLED, Nested, Step, chunk_size

_rnn = backend.rnn


def rnn(draws: Draws) -> Callable[..., Any]:
    """Return what stands for ``keras.src.backend.rnn`` while random layers draw from ``draws``."""

    def run(step_function: Step, inputs: Nested, initial_states: Sequence[Nested], **options: Any) -> Any:
        axis = 0 if options.get("time_major") else 1
        steps = tree.flatten(inputs)[0].shape[axis]
        if steps <= MAX_UNROLLED or not _draws(
            draws, step_function, inputs, [*initial_states, *(options.get("constants") or ())], axis
        ):
            return _rnn(step_function, inputs, initial_states, **options)
        stepped = _Stepped(draws, step_function, chunk_size(steps))
        # Unrolled: then Keras calls the cell for each step in turn.
        return _rnn(stepped, inputs, initial_states, **{**options, "unroll": True})

    return run


class _Stepped:
    """A cell that tells the draws in which chunk its step lies."""

    def __init__(self, draws: Draws, step: Step, size: int) -> None:
        self._draws, self._step, self._size, self._taken = draws, step, size, 0
        self._turn = draws.turns()

    def __call__(self, inputs: Nested, states: Nested) -> tuple[Nested, Nested]:
        place, count = self._taken % self._size, self._draws.count
        with self._turn(tf.constant([self._taken // self._size])):
            # A chunk counts its draws from the same number on; within it they go on.
            if place:
                self._draws.count = count
            self._taken += 1
            return self._step(inputs, states)


def _draws(draws: Draws, step: Step, inputs: Nested, states: Sequence[Nested], axis: int) -> bool:
    before = draws.count
    # In a graph that is thrown away: only the counting is wanted.
    with FuncGraph("draws").as_default():
        step(tree.map_structure(lambda x: tf.zeros(_without(x.shape, axis), x.dtype), inputs), tuple(states))
    found, draws.count = draws.count > before, before
    return found


def _without(shape: tf.TensorShape, axis: int) -> list[int]:
    return [size for at, size in enumerate(shape) if at != axis]
