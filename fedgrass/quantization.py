"""8-bit weights for an application's model, without TensorFlow and without data to calibrate on.

Dynamic-range quantization (Krishnamoorthi 2018, arXiv:1806.08342, section 3): weights become int8 with one scale per output
channel, symmetric about zero; the kernels of dense and convolution layers quantize their inputs as they run. What other
operators take, such as an embedding's table, is stored as int8 too and made float again when the model is loaded.

The file is rewritten with the schema that comes with ``ai-edge-litert``; docs/decisions/0012 says why not by ai-edge-quantizer.
"""

from __future__ import annotations

import struct
from collections import Counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgrass.errors import BundleError
from fedgrass.tensors import Array

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

_LEAST_PER_CHANNEL = 8
"""Values per channel from which int8 pays: a channel's scale and zero point take 12 bytes."""


def quantized(content: bytes) -> bytes | None:
    """Return a float model with its weights as int8, or None if that would hardly make it smaller.

    Raises
    ------
    BundleError
        If ``content`` is no LiteRT model.
    """
    from ai_edge_litert import schema_py_generated as schema

    # The schema's file identifier: flatbuffers would read anything.
    if content[4:8] != b"TFL3":
        raise BundleError("inference model: is no LiteRT model; export the bundle again")
    try:
        model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise BundleError(f"inference model: cannot be read ({error}); export the bundle again") from error
    done = [_quantize_subgraph(schema, model, subgraph) for subgraph in model.subgraphs]
    return packed(model) if any(done) else None


def _quantize_subgraph(schema: ModuleType, model: schema.ModelT, subgraph: schema.SubGraphT) -> bool:
    """Make each float constant int8 where its kernel takes that, and behind a DEQUANTIZE where it does not."""
    # The axis of the output channels, and the input that holds the weights is always the second.
    channel_axis = {
        schema.BuiltinOperator.CONV_2D: 0,
        schema.BuiltinOperator.FULLY_CONNECTED: 0,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3,
    }
    shared = Counter(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)
    changed, dequantized = False, []
    for index, tensor in enumerate(list(subgraph.tensors)):
        data = model.buffers[tensor.buffer].data
        # Constants alone have data. A buffer that several tensors share cannot be float for one and int8 for another.
        if tensor.type != schema.TensorType.FLOAT32 or data is None or shared[tensor.buffer] > 1:
            continue
        values = np.asarray(data, np.uint8).view("<f4").reshape(tensor.shape)
        axes = {
            channel_axis.get(_builtin(model.operatorCodes[operator.opcodeIndex])) if position == 1 else None
            for operator in subgraph.operators
            for position, source in enumerate(operator.inputs)
            if source == index
        }
        # Vectors are biases and the like, which these kernels take as float.
        if not axes or values.ndim < 2 or not np.isfinite(values).all():
            continue
        # Used in two ways, or by another operator: it is made float again in front of them.
        found = axes.pop() if len(axes) == 1 else None
        axis = values.ndim - 1 if found is None else found
        # A scale for each channel takes room too: below this the file would hardly get smaller, and the model less exact.
        if values.size <= _LEAST_PER_CHANNEL * values.shape[axis]:
            continue
        weights, scales = _int8(values, axis)
        float_copy = _copy_of(schema, tensor)
        model.buffers[tensor.buffer].data = weights.reshape(-1).view(np.uint8)
        tensor.type = schema.TensorType.INT8
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        tensor.quantization.quantizedDimension = axis
        changed = True
        if found is None:
            subgraph.tensors.append(float_copy)
            dequantized.append((index, len(subgraph.tensors) - 1))
    for source, target in dequantized:
        _insert_dequantize(schema, model, subgraph, source, target)
    return changed


def _int8(values: Array, axis: int) -> tuple[Array, Array]:
    """Return int8 values and the float32 scale of each channel; ``values ≈ int8 × scale``."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    largest = np.abs(values).max(axis=others)
    # A channel of zeros would have a scale of 0, by which nothing can be divided.
    scales = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    # ±127, not -128: symmetric, as LiteRT's kernels ask of weights.
    return np.clip(np.rint(values / scales.reshape(shape)), -127, 127).astype(np.int8), scales


def _copy_of(schema: ModuleType, tensor: schema.TensorT) -> schema.TensorT:
    """Describe a float tensor of the same shape that no buffer holds."""
    copy = schema.TensorT()
    copy.name = tensor.name + b"/float"
    copy.shape = tensor.shape
    copy.type = tensor.type
    # By convention the empty buffer: a tensor that is computed.
    copy.buffer = 0
    return copy


def _insert_dequantize(
    schema: ModuleType, model: schema.ModelT, subgraph: schema.SubGraphT, source: int, target: int
) -> None:
    # Every user of the constant reads the float copy from now on.
    for operator in subgraph.operators:
        operator.inputs = np.where(operator.inputs == source, target, operator.inputs).astype(np.int32)
    builtin = schema.BuiltinOperator.DEQUANTIZE
    known = [_builtin(code) for code in model.operatorCodes]
    if builtin not in known:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 5  # the first that takes a scale per channel
        model.operatorCodes.append(code)
        known.append(builtin)
    operator = schema.OperatorT()
    operator.opcodeIndex = known.index(builtin)
    operator.inputs, operator.outputs = np.array([source], np.int32), np.array([target], np.int32)
    # Operators run in their order, and this one needs nothing but the constant.
    subgraph.operators.insert(0, operator)


def _builtin(code: schema.OperatorCodeT) -> int:
    # Codes above 127 have no room in the older field; files of old converters have the older field alone.
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def packed(model: schema.ModelT) -> bytes:
    """Return a model of the schema's objects as a file."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        """Keeps constants on 16 bytes, as the schema asks and the generated Python code does not."""

        def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802 - overrides
            return super().StartVector(size, count, 16 if size == 1 else alignment)

    builder = Aligned(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
