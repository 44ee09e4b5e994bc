"""Requests' bodies as examples of a model, and its outputs as answers: JSON, CSV and NumPy's npy.

Nothing of a body is trusted: no pickle, no size but that of the body itself, and every refusal says what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np

from fedgrass.bundle import TensorDescription
from fedgrass.cloud.ending.registration import CONTENT_TYPES
from fedgrass.errors import DataError
from fedgrass.tensors import Array

JSON, CSV, NPY = CONTENT_TYPES
# Characters; the header is evaluated as a Python literal, so its size is bounded.
_MAX_NPY_HEADER = 10_000
# NumPy has 64 dimensions at most, and recurses into lists.
_DEEPEST = 64


def read_examples(body: bytes, content_type: str, x: TensorDescription) -> Array:
    """Return the examples of a body.

    Parameters
    ----------
    content_type
        One of `CONTENT_TYPES`.
    x
        What the model takes: the shape of one example, and its dtype.

    Returns
    -------
    array
        Shape ``(examples, *x.shape)``, of the model's dtype.

    Raises
    ------
    DataError
        If it holds something else.
    """
    read = {JSON: _json, CSV: _csv, NPY: _npy}[content_type]
    return _as_examples(read(body), x)


def write_outputs(outputs: Array, content_type: str) -> bytes:
    """Return the body that tells a model's outputs, one for each example."""
    if content_type == NPY:
        content = io.BytesIO()
        np.save(content, outputs, allow_pickle=False)
        return content.getvalue()
    if content_type == CSV:
        rows = outputs.reshape(len(outputs), -1).tolist()
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    return json.dumps({"predictions": outputs.tolist()}).encode()


def _json(body: bytes) -> Array:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}") from error
    examples = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(examples, list) or not examples:
        raise DataError('expected {"instances": [EXAMPLE, ...]}, or the list alone, with one example at least')
    return _array(examples)


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
