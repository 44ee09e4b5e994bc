"""A loop in the graph that LiteRT runs: WHILE over slices, whose body is traced once.

TensorFlow's own ``while_loop`` carries a counter and a bound without axes, and lists of tensors that LiteRT copies at every
step. Here everything carried has a fixed shape of at least one axis (docs/decisions/0041), and what a turn reads or writes
is a slice of a larger tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops import gen_functional_ops
from tensorflow.python.ops.control_flow_util_v2 import create_new_tf_function

from fedgrass.authoring.gradients import overridden

Tensor: TypeAlias = tf.Tensor

_BODY = "loop_body_"
_numbers = itertools.count()


@dataclass(frozen=True)
class Loop:
    """A traced body, which may run in the graph where it was traced as often as wanted.

    ``captured`` are tensors of that graph that the body uses besides its arguments; they take part as loop invariants.
    """

    turns: int
    captured: tuple[Tensor, ...]
    _carried: int
    _cond: tf.Graph
    _body: tf.Graph

    def run(self, carried: Sequence[Tensor], fixed: Sequence[Tensor], captured: Sequence[Tensor]) -> list[Tensor]:
        """Return what is carried after the last turn.

        Parameters
        ----------
        carried, fixed
            First values of what the body changes, and what it only reads, of the traced shapes.
        captured
            In the place of `captured`.
        """
        # The counter has an axis: LiteRT for 64-bit Arm dies of scalars that are carried (docs/decisions/0041).
        inputs = [tf.zeros([1], tf.int32), *carried, *fixed, *captured]
        outputs = gen_functional_ops.stateless_while(
            inputs,
            self._cond,
            self._body,
            output_shapes=[tensor.shape for tensor in inputs],
            parallel_iterations=1,
        )
        return list(outputs[1 : 1 + self._carried])


def trace(
    turns: int, carried: Sequence[Tensor], fixed: Sequence[Tensor], body: Callable[..., Sequence[Tensor]]
) -> Loop:
    """Trace ``body(number [1], carried, fixed)``, which returns what is carried on.

    Parameters
    ----------
    turns
        Their number, counted from 0.
    carried, fixed
        Tensors (or ``tf.TensorSpec``) of the shapes that the body gets.
    """
    number = next(_numbers)
    graph = FuncGraph(f"{_BODY}{number}")
    with graph.as_default(), overridden():
        arguments = _placeholders([tf.TensorSpec([1], tf.int32), *carried, *fixed])
        rest = arguments[1 + len(carried) :]
        after = body(arguments[0], arguments[1 : 1 + len(carried)], rest)
        after = [tf.identity(value) for value in (arguments[0] + 1, *after)]
    invariants = list(graph.internal_captures)
    captured = tuple(graph.external_captures)
    # WHILE takes and gives the same list: what the body only reads is handed through.
    graph.inputs = [*arguments, *invariants]
    graph.outputs = [*after, *rest, *invariants]

    condition = FuncGraph(f"loop_condition_{number}")
    with condition.as_default():
        condition.inputs = _placeholders(graph.inputs)
        # The one scalar there is: WHILE wants its condition without axes.
        condition.outputs = [tf.reshape(condition.inputs[0] < turns, [])]
    return Loop(turns, captured, len(carried), create_new_tf_function(condition), create_new_tf_function(graph))


def is_body(graph: tf.Graph) -> bool:
    """Whether a graph is being traced as a loop's body."""
    return isinstance(graph, FuncGraph) and graph.name.startswith(_BODY)


def read(slices: Tensor, number: Tensor) -> Tensor:
    """Return a slice of [N, …] without its first axis."""
    flat = tf.reshape(slices, [slices.shape[0], -1])
    return tf.reshape(tf.gather(flat, number), slices.shape[1:])


def write(slices: Tensor, value: Tensor, number: Tensor) -> Tensor:
    """Replace a slice of [N, …].

    Parameters
    ----------
    slices
        [N, …].
    value
        The new slice […].
    number
        int32 [1]: which slice.
    """
    start = tf.concat([number, tf.zeros([slices.shape.rank - 1], tf.int32)], 0)
    written: Tensor = gen_xla_ops.xla_dynamic_update_slice(slices, tf.expand_dims(value, 0), start)
    return written


def _placeholders(like: Sequence[Tensor]) -> list[Tensor]:
    return [tf.compat.v1.placeholder(tensor.dtype, tensor.shape) for tensor in like]
