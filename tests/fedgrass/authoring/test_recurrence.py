"""Recurrent layers of any length have Keras' outputs and gradients, and their loops run in LiteRT.

Outputs and gradients are compared in TensorFlow, which traces in a second what takes ten to convert; its runtime lacks the
operator that writes a slice, so another stands for it there. One net is trained in LiteRT.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.authoring

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402 - only where TensorFlow is
from keras import layers  # noqa: E402

from fedgrass.authoring import loops  # noqa: E402
from fedgrass.authoring.errors import UnsupportedModelError  # noqa: E402
from fedgrass.authoring.export import export  # noqa: E402
from fedgrass.authoring.gradients import gradients  # noqa: E402
from fedgrass.authoring.model import KerasModel  # noqa: E402
from fedgrass.authoring.operators import substituted  # noqa: E402
from fedgrass.authoring.reference import KerasReference  # noqa: E402
from fedgrass.bundle import GRAPH, Optimizer  # noqa: E402
from tests.fedgrass.authoring import nets  # noqa: E402

BATCH, FEATURES = 3, 2


class Cell(layers.Layer):  # type: ignore[misc]
    """A cell of one's own, whose output is not its state."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size = self.output_size = units

    def build(self, shape: Any) -> None:
        self.inner = self.add_weight(shape=(self.state_size, self.state_size), name="inner")
        self.outer = self.add_weight(shape=(shape[-1], self.state_size), name="outer")

    def call(self, x: Any, states: Any) -> Any:
        state = keras.ops.tanh(keras.ops.matmul(x, self.outer) + keras.ops.matmul(states[0], self.inner))
        return 2.0 * state, [state]


class Drawing(Cell):
    """One that draws in each step."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.drop = layers.Dropout(0.3)

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        return super().call(self.drop(x, training=training), states)


def handed_on(x: Any) -> Any:
    whole, first, second = layers.LSTM(3, return_sequences=True, return_state=True)(x)
    return layers.Concatenate()([layers.Flatten()(whole), layers.LSTM(3)(2.0 * x, initial_state=[first, second])])


def masked(layer: Any) -> Callable[[Any], Any]:
    return lambda x: layer(layers.Masking()(x))


KINDS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "simple, backwards": lambda: layers.SimpleRNN(3, go_backwards=True, return_sequences=True),
    "GRU, reset before": lambda: layers.GRU(3, reset_after=False),
    "GRU, masked": lambda: masked(layers.GRU(3, return_sequences=True)),
    "bidirectional LSTM, masked": lambda: masked(layers.Bidirectional(layers.LSTM(2, return_sequences=True))),
    "states handed on": lambda: handed_on,
    "stacked cells": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
    "own cell, masked to zero": lambda: masked(layers.RNN(Cell(2), return_sequences=True, zero_output_for_mask=True)),
    "each step": lambda: lambda x: layers.TimeDistributed(layers.Dense(2))(layers.GRU(2, return_sequences=True)(x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_has_keras_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _difference(KINDS[kind](), 23, monkeypatch) < 2e-6


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 19, 20, 21, 22, 100, 500])
def test_every_length_has_keras_gradients(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = masked(layers.RNN(Cell(2), return_sequences=True))
    assert _difference(layer, steps, monkeypatch) < 5e-6


def test_frames_have_keras_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = lambda x: layers.ConvLSTM2D(2, 2)(layers.Reshape((-1, 3, 3, 1))(layers.Dense(9)(x)))  # noqa: E731
    assert _difference(frames, 22, monkeypatch) < 2e-6


def _difference(layer: Callable[[Any], Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(loops, "write", _write)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps, FEATURES))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layer(inputs))))
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCH, steps, FEATURES)).astype(np.float32)
    for row, end in zip(x, generator.integers(1, steps + 1, BATCH), strict=True):
        row[end:] = 0
        row[generator.integers(0, steps)] = 0
    variables = [tf.Variable(variable.numpy()) for variable in model.trainable_variables]

    def ours() -> Any:
        values = [variable.read_value() for variable in variables]
        with substituted(tf.constant(1)):
            y, _ = model.stateless_call(values, [v.value for v in model.non_trainable_variables], x, training=True)
        return [y, *gradients(y, values, tf.cos(y))]

    with tf.GradientTape() as tape:
        y = model(x, training=True)
        total = tf.reduce_sum(tf.sin(y))
    expected = [y, *tape.gradient(total, [variable.value for variable in model.trainable_variables])]
    pairs = zip(tf.function(ours, autograph=False)(), expected, strict=True)
    return max(float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-2)) for found, wanted in pairs)


def _write(slices: Any, value: Any, number: Any) -> Any:
    return tf.tensor_scatter_nd_update(slices, tf.reshape(number, [1, 1]), tf.expand_dims(value, 0))


def _net() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, FEATURES))
    x = layers.Masking()(inputs)
    x = layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2)(x)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, activation="softmax")(x), name="net")


def test_a_loop_trains_in_litert_as_keras_does_and_carries_no_scalar(tmp_path: Path) -> None:
    made = export(_net(), tmp_path, loss="sparse_categorical_crossentropy", batch_size=nets.BATCH)

    found = made.manifest.self_test
    assert found is not None
    assert found.parameters is not None
    assert found.parameters < 1e-5
    graph = made.path(GRAPH).read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(graph, 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    shapes = [
        subgraph.tensors[index].shape
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if codes[operator.opcodeIndex] == schema.BuiltinOperator.WHILE
        for index in itertools.chain(operator.inputs, operator.outputs)
    ]
    assert shapes
    assert all(shape is not None and len(shape) >= 1 for shape in shapes)


def test_a_graph_does_not_grow_with_the_steps() -> None:
    assert _nodes(30) == _nodes(300)


def _nodes(steps: int) -> int:
    model = keras.Sequential([keras.Input((steps, FEATURES)), layers.GRU(2)])
    variables = [tf.Variable(variable.numpy()) for variable in model.trainable_variables]

    def differentiated(x: Any) -> Any:
        values = [variable.read_value() for variable in variables]
        with substituted(tf.constant(1)):
            y, _ = model.stateless_call(values, [v.value for v in model.non_trainable_variables], x, training=True)
        return gradients(y, values, tf.ones(y.shape))

    specs = [tf.TensorSpec([BATCH, steps, FEATURES])]
    traced = tf.function(differentiated, autograph=False, input_signature=specs)
    graph = traced.get_concrete_function().graph.as_graph_def()
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def test_a_state_from_batch_to_batch_is_refused_by_name(tmp_path: Path) -> None:
    inputs = keras.Input(batch_shape=(2, 5, FEATURES))
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(2, stateful=True, name="kept")(inputs)))

    with pytest.raises(UnsupportedModelError, match="kept"):
        export(model, tmp_path, loss="mean_squared_error", batch_size=2)


@pytest.mark.parametrize("steps", [20, 21])
def test_a_cell_that_draws_in_each_step_is_refused_by_name_where_it_would_be_a_loop(steps: int) -> None:
    inputs = layers.Input((steps, FEATURES))
    model = KerasModel(keras.Model(inputs, layers.RNN(Drawing(2), name="mine")(inputs)))
    if steps == 20:
        KerasReference(model, [], Optimizer(), 1)
        return
    with pytest.raises(UnsupportedModelError, match="mine: a cell that draws at random in each of its 21 steps"):
        KerasReference(model, [], Optimizer(), 1)
