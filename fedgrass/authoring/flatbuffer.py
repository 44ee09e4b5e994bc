"""Edits of a converted model that the converter has no option for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from fedgrass.engines.signatures import LEAST_PASSING, PASSING
from fedgrass.errors import EngineError

_CALL_ONCE = schema.BuiltinOperator.CALL_ONCE
_READ, _ASSIGN = schema.BuiltinOperator.READ_VARIABLE, schema.BuiltinOperator.ASSIGN_VARIABLE
_FILE_IDENTIFIER = b"TFL3"


def without_initializer(content: bytes) -> bytes:
    """Remove the subgraph that assigns initial values to variables, and the values.

    They would make the file larger by every parameter, anchor and optimizer state, and its digest depend on the weights.
    The parameters come from their own file, through ``write_parameters``.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    # Files of older converters have the operator in the deprecated field, newer ones in both.
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    initializers: set[int] = set()
    for subgraph in model.subgraphs:
        calls = [operator for operator in subgraph.operators if codes[operator.opcodeIndex] == _CALL_ONCE]
        initializers.update(operator.builtinOptions.initSubgraphIndex for operator in calls)
        subgraph.operators = [operator for operator in subgraph.operators if operator not in calls]
    if len(initializers) != 1:
        raise EngineError(
            f"the converter made initializers {sorted(initializers)} among {len(model.subgraphs)} subgraphs; "
            "expected one. Use the TensorFlow version of constraints.txt"
        )
    _remove_subgraph(model, *initializers)
    # It has a hash of the input, weights included.
    model.metadata = [entry for entry in model.metadata if entry.name != b"CONVERSION_METADATA"]
    # Names of tensors inside the graph, which nothing reads but this one, are a third of it.
    for subgraph in model.subgraphs:
        passing = _passing(subgraph, codes)
        # Names that are kept say which tensors' memory may be given back after a run (docs/decisions/0052).
        for index, tensor in enumerate(subgraph.tensors):
            tensor.name = PASSING if index in passing else None
    share_constants(model)
    return _packed(model)


def share_constants(model: schema.ModelT) -> None:
    """Let equal constants share one buffer, and remove the buffers that nothing uses."""
    users = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors] + (model.metadata or [])
    first: dict[bytes, int] = {}
    # What a signature gives stays its own, as TensorFlow's converter leaves it: graphs keep their digests.
    given = {subgraph.tensors[index].buffer for subgraph in model.subgraphs for index in subgraph.outputs}
    # Buffer 0 is the format's empty one; others that are empty are values of each run, a buffer for each.
    same = [
        first.setdefault(hashlib.sha256(buffer.data).digest(), index)
        if _length(buffer) and index not in given
        else index
        for index, buffer in enumerate(model.buffers)
    ]
    used = sorted({0} | {same[user.buffer] for user in users})
    place = {index: at for at, index in enumerate(used)}
    for user in users:
        user.buffer = place[same[user.buffer]]
    model.buffers = [model.buffers[index] for index in used]


def _length(buffer: schema.BufferT) -> int:
    return 0 if buffer.data is None else len(buffer.data)


def _passing(subgraph: schema.SubGraphT, codes: list[int]) -> set[int]:
    """Return the large tensors that hold nothing from one run to the next: what is read of variables, and what they are set to.

    What is computed of constants alone is none of them: LiteRT may do that once.
    """
    changing = set(map(int, subgraph.inputs))
    found: set[int] = set()
    for operator in subgraph.operators:
        code, inputs, outputs = (codes[operator.opcodeIndex], list(operator.inputs), list(operator.outputs))
        if code == _READ:
            found.update(outputs)
        elif code == _ASSIGN and inputs[1] in changing and inputs[1] not in subgraph.inputs:
            found.add(inputs[1])
        if code == _READ or changing.intersection(inputs):
            changing.update(outputs)
    return {index for index in found if 4 * np.prod(subgraph.tensors[index].shape, dtype=np.int64) >= LEAST_PASSING}


def _remove_subgraph(model: schema.ModelT, index: int) -> None:
    """Remove a subgraph, and renumber those after it wherever they are referenced: in signatures and loops."""
    model.subgraphs.pop(index)
    named = {signature.subgraphIndex for signature in model.signatureDefs}
    for place, subgraph in enumerate(model.subgraphs):
        # The names of loops hold a counter of the process.
        # Names of signatures' subgraphs are read at run time; those of loops would make two exports differ.
        if place + (place >= index) not in named:
            subgraph.name = None
        for operator in subgraph.operators:
            if isinstance(operator.builtinOptions, schema.WhileOptionsT):
                options = operator.builtinOptions
                # True counts as 1: everything behind the removed one moves up.
                options.condSubgraphIndex -= options.condSubgraphIndex > index
                options.bodySubgraphIndex -= options.bodySubgraphIndex > index
    for signature in model.signatureDefs:
        signature.subgraphIndex -= signature.subgraphIndex > index


def with_constant_inputs(content: bytes, values: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Turn inputs of a model's only signature, by name, into constants."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    (signature,) = model.signatureDefs
    subgraph = model.subgraphs[signature.subgraphIndex]
    for entry in [entry for entry in signature.inputs if entry.name.decode() in values]:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values[entry.name.decode()].tobytes(), np.uint8)
        subgraph.tensors[entry.tensorIndex].buffer = len(model.buffers)
        model.buffers.append(buffer)
        subgraph.inputs = [index for index in subgraph.inputs if index != entry.tensorIndex]
        signature.inputs.remove(entry)
    return _packed(model)


def _packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def holds_others(content: bytes, offsets: Set[int], known: Set[bytes]) -> bool:
    """Whether a model has float constants that are neither at these places nor among the known ones.

    Parameters
    ----------
    content
        The model.
    offsets
        Where constants begin that are known by their place.
    known
        Other constants, as bytes.
    """
    model = schema.Model.GetRootAs(content, 0)
    floats = {
        tensor.Buffer()
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for tensor in map(graph.Tensors, range(graph.TensorsLength()))
        if tensor.Type() == schema.TensorType.FLOAT32
    }
    for buffer in map(model.Buffers, floats):
        if not buffer.DataLength():
            continue
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        if start not in offsets and content[start : start + buffer.DataLength()] not in known:
            return True
    return False
