"""Bodies of requests: what is good gives the same examples in each form, what is not gets words."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedgrass.bundle import TensorDescription
from fedgrass.cloud.serving.bodies import CSV, JSON, NPY, read_examples, write_outputs
from fedgrass.errors import DataError
from fedgrass.tensors import Array

X = TensorDescription(name="x", shape=(2, 3), dtype="float32")
WHOLE = TensorDescription(name="x", shape=(2,), dtype="uint8")


def npy(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def in_csv(array: Array) -> bytes:
    return "".join(",".join(map(repr, row)) + "\n" for row in array.reshape(len(array), -1).tolist()).encode()


_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
examples = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(2), st.just(3)), elements=_FINITE)


@given(examples)
def test_each_form_gives_the_same_examples(array: Array) -> None:
    for body, form in (
        (json.dumps({"instances": array.tolist()}).encode(), JSON),
        (json.dumps(array.tolist()).encode(), JSON),
        (in_csv(array), CSV),
        (npy(array), NPY),
        (npy(np.asfortranarray(array)), NPY),
        (npy(array.astype(">f8")), NPY),
    ):
        assert np.array_equal(read_examples(body, form, X), array)


@given(examples)
def test_outputs_come_back_from_each_form_as_they_were(array: Array) -> None:
    assert np.array_equal(np.load(io.BytesIO(write_outputs(array, NPY))), array)
    told = json.loads(write_outputs(array, JSON))["predictions"]
    assert np.array_equal(np.array(told, np.float32), array)
    assert np.array_equal(read_examples(write_outputs(array, CSV), CSV, X), array)


@pytest.mark.parametrize(
    ("body", "form", "why"),
    [
        (b"", JSON, "not JSON"),
        (b"{", JSON, "not JSON"),
        (b"\xff", JSON, "not JSON"),
        (b"[" * 100_000, JSON, "not JSON|nested"),
        (b"[" * 70 + b"1" + b"]" * 70, JSON, "nested"),
        (b"{}", JSON, "instances"),
        (b'{"instances": []}', JSON, "instances"),
        (b'{"instances": 7}', JSON, "instances"),
        (b'{"instances": [[1, 2], [3]]}', JSON, "one shape"),
        (b'{"instances": [["a", "b"]]}', JSON, "else than numbers"),
        (b'{"instances": [null]}', JSON, "else than numbers"),
        (b'{"instances": [[[1, 2, 3], [4, 5, NaN]]]}', JSON, "not finite"),
        (b'{"instances": [[[1, 2, 3], [4, 5, 1e39]]]}', JSON, "beyond"),
        (b'{"instances": [[[1, 2, 3], [4, 5, ' + b"9" * 400 + b"]]]}", JSON, "numbers|beyond|one shape"),
        (b'{"instances": [[1, 2, 3]]}', JSON, r"shape \[2, 3\], found an array of shape \[1, 3\]"),
        (b"1,2,3,4,5\n", CSV, "shape"),
        (b"1,2,3,4,5,6\n1,2\n", CSV, "one shape"),
        (b"a,b,c,d,e,f\n1,2,3,4,5,6\n", CSV, "no header"),
        (b"\xff\xfe", CSV, "not CSV"),
        (b"", CSV, "shape"),
        (b"1,2,3,4,5,inf\n", CSV, "not finite"),
        (b"", NPY, "not an npy"),
        (b"\x93NUMPY", NPY, "not an npy"),
        (b"\x93NUMPY\x09\x00", NPY, "not an npy"),
        (npy(np.zeros((1, 2, 3)))[:-1], NPY, "does not agree"),
        (npy(np.zeros((1, 2, 3))) + b"x", NPY, "does not agree"),
        (npy(np.zeros((1, 2, 3))).replace(b"(1, 2, 3), }", b"(1<<40,2,3)}"), NPY, "npy"),
        (npy(np.zeros((1, 2, 3))).replace(b"(1, 2, 3), }", b"(99999999,)}"), NPY, "does not agree|npy"),
        (npy(np.array([{"a": 1}], dtype=object)), NPY, "expected numbers"),
        (npy(np.array(["abc"])), NPY, "expected numbers"),
        (npy(np.zeros((0, 2, 3))), NPY, "shape"),
        (npy(np.zeros(())), NPY, "shape"),
    ],
)
def test_a_body_that_is_none_is_refused_in_words(body: bytes, form: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_examples(body, form, X)


@pytest.mark.parametrize("values", [[256, 0], [-1, 0], [0.5, 0]])
def test_numbers_that_the_model_s_kind_does_not_hold_are_not_bent(values: list[float]) -> None:
    with pytest.raises(DataError, match="not such numbers"):
        read_examples(json.dumps([values]).encode(), JSON, WHOLE)


@given(st.binary(max_size=300), st.sampled_from([JSON, CSV, NPY]))
def test_any_bytes_give_examples_or_words(body: bytes, form: str) -> None:
    for content in (body, npy(np.zeros((1, 2, 3), np.float32))[:64] + body):
        try:
            found = read_examples(content, form, X)
        except DataError:
            continue
        assert found.shape[1:] == X.shape
