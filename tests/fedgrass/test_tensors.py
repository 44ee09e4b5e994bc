"""Our safetensors reader and writer, held against the format's own library."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgrass import tensors
from fedgrass.errors import TensorFileError
from fedgrass.mapped_tensors import MappedTensors

DTYPES = ["?", "<u1", "<i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"]
arrays = hnp.arrays(
    dtype=st.sampled_from(DTYPES).map(np.dtype), shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
tensor_maps = st.dictionaries(names, arrays, max_size=4)
metadata_maps = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4)


def read(content: bytes) -> tensors.Header:
    return tensors.read_header(io.BytesIO(content), file_bytes=len(content))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and left[key].tobytes() == right[key].tobytes() for key in left
    )


@given(content=tensor_maps, metadata=metadata_maps)
def test_the_library_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors.save(path, content, metadata)
    assert same(safetensors.numpy.load(path.read_bytes()), content)


@given(content=tensor_maps, metadata=metadata_maps)
def test_we_read_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    path.write_bytes(safetensors.numpy.save(content, metadata or None))
    loaded, found = tensors.load(path)
    assert same(loaded, content)
    assert found == metadata


@given(content=tensor_maps, metadata=metadata_maps)
def test_the_same_tensors_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], metadata: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    first = tensors.save(folder / "a", content, metadata)
    second = tensors.save(folder / "b", content, dict(reversed(list(metadata.items()))))
    assert first == second
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@given(content=tensor_maps, metadata=metadata_maps)
def test_a_mapped_file_reads_as_a_loaded_one_even_after_another_has_its_name(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors.save(path, {**{f"a/{name}": value for name, value in content.items()}, "b/other": np.ones(3)}, metadata)
    mapped = MappedTensors(path, prefix="a/")
    tensors.save(path, {"a/another": np.zeros(5000)}, {})
    assert same(dict(mapped), content)
    assert list(mapped) == list(content)
    assert mapped.metadata == metadata
    assert not any(value.flags.writeable for value in mapped.values() if value.size)


def test_a_mapped_file_is_refused_as_a_loaded_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.save(path, {"w": np.zeros(100)}, {})
    with pytest.raises(TensorFileError, match="at most 10 are accepted"):
        MappedTensors(path, max_bytes=10)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="header and tensors make"):
        MappedTensors(path)
    with pytest.raises(TensorFileError, match="cannot be read"):
        MappedTensors(tmp_path / "none")


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(safetensors.numpy.save({"w": np.zeros((2, 3), np.float32)}, {"a": "b"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        header = read(bytes(content[:cut]))
    except TensorFileError:
        return
    assert header.data_offset + sum(spec.nbytes for spec in header.tensors) == cut


def file_with(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\1\0", "truncated"),
        (struct.pack("<Q", 1 << 40) + b"{}", "claims"),
        (file_with(b"{"), "not valid JSON"),
        (file_with(b"[]"), "expected an object"),
        (file_with(b"[" * 100_000 + b"]" * 100_000), "not valid JSON"),
        (file_with(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'), "twice"),
        (file_with({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_with({"w": entry(dtype="F8")}), "dtype"),
        (file_with({"w": entry(shape=[-2])}), "shape"),
        (file_with({"w": entry(shape=[True, 2])}), "shape"),
        (file_with({"w": entry(shape=[1] * 9)}), "shape"),
        (file_with({"w": entry(shape=[1 << 60, 1 << 60])}), "shape"),
        (file_with({"w": entry(shape=[3])}), "do not hold shape"),
        (file_with({"w": entry(data_offsets=[0, 8, 9])}), "data_offsets"),
        (file_with({"w": entry(data_offsets=[4, 12])}, b"\0" * 12), "holes"),
        (file_with({"w": entry(), "v": entry()}), "overlaps"),
        (file_with({"w": entry()}, b"\0" * 9), "file has"),
        (file_with({"w": {**entry(), "extra": 1}}), "expected dtype"),
    ],
)
def test_a_header_that_lies_is_refused_with_its_reason(content: bytes, message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        read(content)


def test_a_file_over_its_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(TensorFileError, match="at most 1000"):
        tensors.load(path, max_bytes=1000)
