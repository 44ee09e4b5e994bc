"""What a tensor of a graph holds, where it follows from constants alone: axes, permutations, ranges."""

from __future__ import annotations

from typing import TypeAlias

import tensorflow as tf

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.tensors import Array

Tensor: TypeAlias = tf.Tensor


def known(tensor: Tensor) -> Array:
    """Return the value of a tensor of the graph that is being traced.

    Parameters
    ----------
    tensor
        Of any shape; TensorFlow computes some, such as the permutation of a softmax over another axis than the last.

    Raises
    ------
    UnsupportedModelError
        If it hangs on the model's input or on a variable.
    """
    value: Array | None = tf.get_static_value(tensor)
    if value is not None:
        return value
    # With the versions of the traced graph, by which TensorFlow reads its operators.
    definition = tf.compat.v1.GraphDef(versions=tensor.graph.graph_def_versions)
    for op in _behind(tensor):
        if op.type in ("Placeholder", "ReadVariableOp"):
            raise UnsupportedModelError(
                tensor.op.name, f"{tensor.op.type}, an axis or a range that is computed,", "make it constant"
            )
        definition.node.append(op.node_def)
    # In a graph of its own: the one that is being traced is locked while gradients are made.
    with tf.Graph().as_default() as apart, tf.compat.v1.Session(graph=apart) as session:
        tf.graph_util.import_graph_def(definition, name="")
        found: Array = session.run(tensor.name)
    return found


def _behind(tensor: Tensor) -> list[tf.Operation]:
    pending, seen = [tensor.op], {}
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen[op.name] = op
            pending.extend([*(x.op for x in op.inputs), *op.control_inputs])
    return list(seen.values())
