"""A traced function's operations, made again in the present graph around other values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from fedgrass.authoring.errors import UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorflow.core.framework.function_pb2 import FunctionDef

Tensor: TypeAlias = tf.Tensor
_LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "TensorList")

Value: TypeAlias = "tf.Tensor | NDArray[np.generic] | int"
"""A tensor of the present graph, a NumPy array that is known already, or the key of a resource."""


def replay(
    function: tf.types.experimental.ConcreteFunction, inputs: Sequence[Tensor], resources: Mapping[int, Value]
) -> list[Tensor]:
    """Make the operations of a concrete function again, and return its outputs.

    Parameters
    ----------
    function
        ``tf.types.experimental.ConcreteFunction``; calls to other functions in it are followed.
    inputs
        For its inputs without the captured ones.
    resources
        What reading each captured variable gives, by the ``id`` of its handle.
    """
    captured = [id(handle) for handle in function.captured_inputs]
    library = {definition.signature.name: definition for definition in function.graph.as_graph_def().library.function}
    return [_tensor(value) for value in _Replay(library, resources).play(function.graph, [*inputs, *captured])]


class _Replay:
    def __init__(self, library: Mapping[str, FunctionDef], resources: Mapping[int, Value]) -> None:
        self._library = library
        self._resources = resources

    def play(self, graph: tf.Graph, inputs: Sequence[Value]) -> list[Value]:
        # By ref(): tensors compare element by element, so they cannot be keys.
        known = {tensor.ref(): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
        for op in graph.get_operations():
            # Inputs are given, and what orders operations has no place in a graph without side effects.
            if op.type in ("Placeholder", "NoOp"):
                continue
            values = self._make(op, [known[tensor.ref()] for tensor in op.inputs], graph)
            known |= {tensor.ref(): value for tensor, value in zip(op.outputs, values, strict=True)}
        return [known[tensor.ref()] for tensor in graph.outputs]

    def _make(self, op: tf.Operation, inputs: list[Value], graph: tf.Graph) -> Sequence[Value]:
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            return self.play(self._called(op.get_attr("f").name, graph), inputs)
        if op.type.startswith(_LOOPS):
            raise UnsupportedModelError(
                op.name,
                f"operator {op.type} of a SavedModel",
                "save recurrent layers with unroll=True, or give the .keras file",
            )
        if op.type == "ReadVariableOp":
            return [self._resources[_key(inputs[0])]]
        # As NumPy: what is computed of constants alone can then be folded.
        if op.type == "Const":
            return [tf.make_ndarray(op.get_attr("value"))]
        if op.type == "Identity":
            return inputs
        if op.type == "Shape" and (sizes := _known_shape(inputs[0])) is not None:
            return [np.array(sizes, op.get_attr("out_type").as_numpy_dtype)]
        # Shapes that the SavedModel computes must be numbers here: LiteRT's gradients need every shape fixed.
        if op.inputs and all(isinstance(value, (np.ndarray, np.generic)) for value in inputs):
            return _folded(op, inputs)
        if op.type in _EXCHANGED:
            return [_EXCHANGED[op.type](op, *(_tensor(value) for value in inputs))]
        if op.type == "Mul" and (gelu := _gelu_input(inputs)) is not None:
            return [tf.nn.gelu(gelu)]
        return _created(op, inputs, tf.compat.v1.get_default_graph())

    def _called(self, name: str, graph: tf.Graph) -> tf.Graph:
        with graph.as_default():
            return function_def_to_graph(self._library[name], include_library_functions=True)


def _key(value: Value) -> int:
    if not isinstance(value, int):
        raise UnsupportedModelError("the model", "a variable that is chosen while it runs", "read one variable by name")
    return value


def _known_shape(value: Value) -> tuple[int, ...] | None:
    """Return a value's shape if each size is known."""
    shape = tf.TensorShape([]) if isinstance(value, int) else tf.TensorShape(value.shape)
    return tuple(shape) if shape.is_fully_defined() else None


def _created(op: tf.Operation, inputs: Sequence[Value], graph: tf.Graph) -> Sequence[Tensor]:
    # What begins with an underscore is of the old graph: gradients, shapes, devices.
    attributes = {key: value for key, value in op.node_def.attr.items() if not key.startswith("_")}
    tensors = [_tensor(value) for value in inputs]
    types = [tensor.dtype for tensor in op.outputs]
    try:
        made = graph.create_op(op.type, tensors, types, name=op.name, attrs=attributes)
    except ValueError as error:
        raise UnsupportedModelError(
            op.name, f"operator {op.type} at another batch size ({error})", "save it with an open batch axis"
        ) from error
    found: Sequence[Tensor] = made.outputs
    return found


def _folded(op: tf.Operation, inputs: Sequence[Value]) -> Sequence[Value]:
    # In a graph of its own: the one that is traced must not keep these operations.
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        found: Sequence[Value] = session.run(list(_created(op, inputs, graph)))
        return found


def _tensor(value: Value) -> Tensor:
    return tf.convert_to_tensor(value)


def _conv2d(op: tf.Operation, x: Tensor, kernel: Tensor) -> Tensor:
    strides, dilations, layout = _windows(op)
    return tf.nn.convolution(
        x, kernel, strides=strides, padding=op.get_attr("padding").decode(), data_format=layout, dilations=dilations
    )


def _depthwise_conv2d(op: tf.Operation, x: Tensor, kernel: Tensor) -> Tensor:
    _, dilations, layout = _windows(op)
    return tf.nn.depthwise_conv2d(
        x, kernel, op.get_attr("strides"), op.get_attr("padding").decode(), data_format=layout, dilations=dilations
    )


def _bias_add(op: tf.Operation, x: Tensor, bias: Tensor) -> Tensor:
    return tf.nn.bias_add(x, bias, data_format=op.get_attr("data_format").decode())


def _windows(op: tf.Operation) -> tuple[list[int], list[int], str]:
    layout = op.get_attr("data_format").decode()
    first = layout.index("H")
    return op.get_attr("strides")[first : first + 2], op.get_attr("dilations")[first : first + 2], layout


_EXCHANGED = {"BiasAdd": _bias_add, "Conv2D": _conv2d, "DepthwiseConv2dNative": _depthwise_conv2d}
"""Operators made through the names that `fedgrass.authoring.operators` points elsewhere."""


def _gelu_input(inputs: Sequence[Value]) -> Tensor | None:
    """Return x if these are the factors of 0.5 x · erfc(−x/√2), which is how Keras writes the exact GELU."""
    for half, complement in (inputs, inputs[::-1]):
        if isinstance(complement, tf.Tensor) and complement.op.type == "Erfc" and isinstance(half, tf.Tensor):
            return next((x for x in half.op.inputs if x.op.type != "Const"), None)
    return None
