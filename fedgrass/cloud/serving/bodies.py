"""Requests' bodies as examples of a model, and its outputs as answers: JSON, CSV and NumPy's npy.

Nothing of a body is trusted: no pickle, no size but that of the body itself, and every refusal says what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

import numpy as np

from fedgrass.bundle import Head, TensorDescription
from fedgrass.cloud.ending.registration import CONTENT_TYPES
from fedgrass.engines.several import apart, joined, spans
from fedgrass.errors import DataError
from fedgrass.tensors import Array

JSON, CSV, NPY = CONTENT_TYPES
# Characters; the header is evaluated as a Python literal, so its size is bounded.
_MAX_NPY_HEADER = 10_000
# NumPy has 64 dimensions at most, and recurses into lists.
_DEEPEST = 64


def read_examples(
    body: bytes, content_type: str, x: TensorDescription, inputs: Sequence[TensorDescription] = ()
) -> Array:
    """Return the examples of a body.

    Parameters
    ----------
    content_type
        One of `CONTENT_TYPES`.
    x
        What the model takes: the shape of one example, and its dtype.
    inputs
        Several inputs, which are one row in x. In JSON an example is an object of them by name; in the other forms, the row.

    Returns
    -------
    array
        Shape ``(examples, *x.shape)``, of the model's dtype.

    Raises
    ------
    DataError
        If it holds something else.
    """
    if content_type == JSON:
        examples = _json(body)
        return _by_name(examples, inputs) if inputs else _as_examples(_array(examples), x)
    rows = _as_examples((_csv if content_type == CSV else _npy)(body), x)
    for part, span in zip(inputs, spans(inputs), strict=True):
        # A row is float32, whatever its parts are.
        _as_examples(rows[:, span], part.model_copy(update={"shape": (part.size,)}))
    return rows


def write_outputs(outputs: Array, content_type: str, heads: Sequence[Head] = ()) -> bytes:
    """Return the body that tells a model's outputs, one for each example; of several ``heads`` by name in JSON, else in a row."""
    if content_type == NPY:
        content = io.BytesIO()
        np.save(content, outputs, allow_pickle=False)
        return content.getvalue()
    if content_type == CSV:
        rows = outputs.reshape(len(outputs), -1).tolist()
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    if heads:
        names = [head.name for head in heads]
        each = zip(*(part.tolist() for part in apart(outputs, [head.output for head in heads])), strict=True)
        return json.dumps({"predictions": [dict(zip(names, values, strict=True)) for values in each]}).encode()
    return json.dumps({"predictions": outputs.tolist()}).encode()


def _json(body: bytes) -> list[object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}") from error
    examples = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(examples, list) or not examples:
        raise DataError('expected {"instances": [EXAMPLE, ...]}, or the list alone, with one example at least')
    return examples


def _by_name(examples: list[object], inputs: Sequence[TensorDescription]) -> Array:
    """Return examples that are objects of several inputs as rows."""
    names = [part.name for part in inputs]
    for number, example in enumerate(examples):
        if not isinstance(example, dict) or sorted(example) != sorted(names):
            found = ", ".join(example) if isinstance(example, dict) else type(example).__name__
            raise DataError(
                f"example {number}: expected an object of {', '.join(names)}, found {found[:200] or 'nothing'}"
            )
    return joined({part.name: _of_part(examples, part) for part in inputs}, inputs)


def _of_part(examples: Sequence[object], part: TensorDescription) -> Array:
    try:
        values = _array([example[part.name] for example in examples if isinstance(example, dict)])
        # One value may come without its axis of 1.
        return _as_examples(values.reshape(-1, *part.shape) if part.size == 1 else values, part)
    except DataError as error:
        raise DataError(f"{part.name}: {error}") from error


def _csv(body: bytes) -> Array:
    try:
        # strict: a quote that is never closed is an error, not one long value.
        rows = [row for row in csv.reader(io.StringIO(body.decode()), strict=True) if row]
        return _array([[float(value) for value in row] for row in rows])
    except (ValueError, csv.Error) as error:
        raise DataError(f"the body is not CSV of numbers, an example in each row and no header: {error}") from error


def _npy(body: bytes) -> Array:
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=_MAX_NPY_HEADER)
    except (ValueError, KeyError, SyntaxError, EOFError, RecursionError) as error:
        raise DataError(f"the body is not an npy file of version 1 or 2: {error}") from error
    # An object array is a pickle, and a pickle is code.
    if dtype.hasobject or dtype.kind not in "fiub":
        raise DataError(f"expected numbers, found an npy file of dtype {dtype}")
    left = len(body) - stream.tell()
    # Before anything is made of that shape: its product may be beyond all memory.
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != left:
        raise DataError(f"the npy file's shape {shape} of {dtype} does not agree with the {left} bytes that follow")
    array = np.frombuffer(body, dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def _array(examples: list[object]) -> Array:
    if _depth(examples) > _DEEPEST:
        raise DataError("the examples are nested deeper than any model's")
    try:
        array = np.array(examples)
    except (ValueError, OverflowError) as error:
        raise DataError(f"the examples are not all of one shape: {error}") from error
    if array.dtype.kind not in "fiub":
        raise DataError("the examples hold something else than numbers")
    return array


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value and depth <= _DEEPEST:
        value, depth = value[0], depth + 1
    return depth


def _as_examples(array: Array, x: TensorDescription) -> Array:
    # One example without the outer list, as a form of its own.
    if array.shape == x.shape:
        array = array[np.newaxis]
    elif array.ndim == 2 and len(x.shape) != 1 and array.shape[1] == x.size:  # CSV has rows only
        array = array.reshape(len(array), *x.shape)
    if array.ndim == 0 or array.shape[1:] != x.shape or len(array) == 0:
        raise DataError(f"expected examples of shape {list(x.shape)}, found an array of shape {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("the examples hold values that are not finite")
    with np.errstate(all="ignore"):
        cast: Array = array.astype(x.dtype)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise DataError(f"the examples hold values beyond the model's {x.dtype}")
    # A cast to integers cuts off: 2.7 must not become 2 without a word.
    elif not np.array_equal(cast, array):
        raise DataError(f"the model takes {x.dtype}: the examples hold values that are not such numbers")
    return cast
