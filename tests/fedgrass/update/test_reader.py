from __future__ import annotations

import contextlib
import io
import json
import math
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass import tensors
from fedgrass.bundle import Parameters, TensorDescription
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.errors import UpdateError
from fedgrass.protocol.messages import UpdateTask
from fedgrass.update import UpdateHeader, write_update
from fedgrass.update.header import Reason
from fedgrass.update.reader import UpdateReader, max_update_bytes
from fedgrass.update.registry import codec_named
from tests.fedgrass.update.conftest import CODECS, DESCRIPTIONS, HEADER, draw_parameters


def read_all(content: bytes, block: int = 1024, file_bytes: int | None = None) -> tuple[UpdateHeader, Parameters]:
    size = len(content) if file_bytes is None else file_bytes
    reader = UpdateReader(io.BytesIO(content), file_bytes=size, parameters=DESCRIPTIONS)
    layout = Layout(DESCRIPTIONS)
    flat = np.full(layout.size, np.nan, np.float32)
    for span in layout.tiles(block):
        reader.fill(flat[span])
    reader.require_end()
    return reader.header, layout.unflatten(flat)


def refusal(content: bytes, file_bytes: int | None = None) -> str:
    with pytest.raises(UpdateError) as raised:
        read_all(content, file_bytes=file_bytes)
    assert str(raised.value)
    return raised.value.code


def rebuilt(change: Callable[[dict[str, Any]], None], values: dict[str, tensors.Array] | None = None) -> bytes:
    """A well-formed file of the difference, with its JSON header changed."""
    stored = values or {n: v - draw_parameters(0)[n] for n, v in draw_parameters(1).items()}
    head = tensors.encode_header([(n, v.dtype, v.shape) for n, v in stored.items()], HEADER.to_metadata())
    document = json.loads(head[8:])
    change(document)
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in stored.values())


def with_metadata(**changes: str) -> bytes:
    return rebuilt(lambda document: document["__metadata__"].update(changes))


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_written_is_read_alike_in_blocks_of_any_size(written: Callable[..., Path], codec: str) -> None:
    content = written(codec).read_bytes()
    header, found = read_all(content, 1024)
    assert header == HEADER.model_copy(update={"codec": codec})
    base, local = draw_parameters(0), draw_parameters(1)
    for name, again in read_all(content, 4096)[1].items():
        np.testing.assert_array_equal(found[name], again)
        expected = local[name] - base[name]
        if codec == "float16":
            expected = expected.astype(np.float16).astype(np.float32)
        if "int" not in codec and "topk" not in codec:
            np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("codec", ["float32", "int8", "int4+zstd"])
def test_reading_takes_no_memory_that_grows_with_the_update(tmp_path: Path, codec: str) -> None:
    described = (TensorDescription(name="w", shape=(1 << 20,), dtype="float32"),)
    zeros: Parameters = {"w": np.zeros(1 << 20, np.float32)}
    write_update(
        tmp_path / "update", zeros, {"w": np.arange(1 << 20, dtype=np.float32)}, HEADER, UpdateTask(codec=codec)
    )
    values = np.empty(1 << 14, np.float32)
    with (tmp_path / "update").open("rb") as stream:
        tracemalloc.start()
        reader = UpdateReader(stream, file_bytes=(tmp_path / "update").stat().st_size, parameters=described)
        for _ in range(64):
            reader.fill(values)
        reader.require_end()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20  # of 4 MiB


def test_a_stream_that_gives_a_byte_at_a_time_is_read_alike(written: Callable[..., Path]) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(1, size or 0))

        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:1])

    content = written().read_bytes()
    reader = UpdateReader(Dripping(content), file_bytes=len(content), parameters=DESCRIPTIONS)
    found = np.empty(sum(d.size for d in DESCRIPTIONS), np.float32)
    reader.fill(found)
    np.testing.assert_array_equal(found, np.concatenate([v.ravel() for v in read_all(content)[1].values()]))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema": "2"}, "wrong_schema"),
        ({"fleet": "../x"}, "corrupt_header"),
        ({"round": "seven"}, "corrupt_header"),
        ({"round": "0"}, "corrupt_header"),
        ({"thing": "a/b"}, "corrupt_header"),
        ({"base_sha256": "zz"}, "corrupt_header"),
        ({"num_examples": "0"}, "bad_examples"),
        ({"num_examples": "-5"}, "bad_examples"),
        ({"num_examples": "nan"}, "bad_examples"),
        ({"num_examples": "1e400"}, "bad_examples"),
        ({"num_examples": str(1 << 60)}, "bad_examples"),
        ({"metrics": "{"}, "corrupt_header"),
        ({"metrics": '{"loss": NaN}'}, "corrupt_header"),
        ({"metrics": "[" * 3000}, "corrupt_header"),
        ({"metrics": '{"loss": 1e999}'}, "corrupt_header"),
        ({"codec": "morse"}, "unknown_codec"),
        ({"codec": ""}, "unknown_codec"),
        ({"codec": "\ud800"}, "unknown_codec"),
    ],
)
def test_a_wrong_header_field_has_its_reason(changes: dict[str, str], code: str) -> None:
    assert refusal(with_metadata(**changes)) == code


def test_tensors_of_another_model_have_their_reason() -> None:
    delta = {n: v - draw_parameters(0)[n] for n, v in draw_parameters(1).items()}
    transposed = delta | {"dense/kernel": delta["dense/kernel"].T.copy()}
    assert refusal(rebuilt(lambda _: None, transposed)) == "wrong_shape"
    halves = {n: v.astype(np.float16) for n, v in delta.items()}
    assert refusal(rebuilt(lambda _: None, halves)) == "wrong_dtype"
    renamed = {("other" if n == "scale" else n): v for n, v in delta.items()}
    assert refusal(rebuilt(lambda _: None, renamed)) == "wrong_parameters"
    reordered = dict(reversed(list(delta.items())))
    assert refusal(rebuilt(lambda _: None, reordered)) == "wrong_parameters"


@pytest.mark.parametrize("codec", ["float32", "topk:0.05+int8+zstd"])
def test_a_short_file_is_truncated_wherever_it_ends(written: Callable[..., Path], codec: str) -> None:
    content = written(codec).read_bytes()
    for size in [*range(0, len(content), 1 + len(content) // 300), len(content) - 1]:
        assert refusal(content[:size]) == "truncated"
        assert refusal(content[:size], file_bytes=len(content)) == "truncated"


def test_a_long_file_is_refused(written: Callable[..., Path]) -> None:
    assert refusal(written().read_bytes() + b"\0") == "corrupt_header"


def test_a_size_beyond_any_update_of_the_model_is_refused_before_a_byte_is_read() -> None:
    class Unreadable(io.RawIOBase):
        def readable(self) -> bool:
            raise AssertionError("the stream was touched")

    with pytest.raises(UpdateError) as raised:
        UpdateReader(
            Unreadable(),  # type: ignore[arg-type]
            file_bytes=max_update_bytes(DESCRIPTIONS) + 1,
            parameters=DESCRIPTIONS,
        )
    assert raised.value.code == "too_large"


def test_the_bound_holds_every_codec_and_the_longest_names() -> None:
    name = "\u20ac" * 200
    described = (TensorDescription(name=name, shape=(1, 1, 1, 1, 1, 1, 1, 3), dtype="float32"),)
    for codec in CODECS:
        layout = [(t.name, t.dtype, t.shape) for t in codec_named(codec).parameters.layout(described[0])]
        header = HEADER.model_copy(update={"metrics": {"m" * 39 + chr(97 + i): 1 / 3 for i in range(16)}})
        size = len(tensors.encode_header(layout, header.to_metadata())) + sum(
            d.itemsize * math.prod(shape) for _, d, shape in layout
        )
        assert size <= max_update_bytes(described)


@pytest.mark.parametrize("length", [0, 1, (1 << 63) + 5, (1 << 64) - 1, 1 << 22])
def test_a_lying_header_length_is_refused(written: Callable[..., Path], length: int) -> None:
    assert refusal(struct.pack("<Q", length) + written().read_bytes()[8:]) in {"corrupt_header", "truncated"}


class RefusedError(Exception):
    """An orderly refusal."""


@contextlib.contextmanager
def refusals_have_a_reason() -> Iterator[None]:
    try:
        yield
    except UpdateError as error:
        if error.code not in get_args(Reason) or not str(error).encode("utf-8", "strict"):
            raise
        raise RefusedError from error


def _accepted_or_refused_with_a_reason(content: bytes) -> None:
    with contextlib.suppress(RefusedError), refusals_have_a_reason():
        read_all(content)


@given(st.binary(max_size=400))
def test_any_bytes_are_accepted_or_refused_with_a_reason(content: bytes) -> None:
    _accepted_or_refused_with_a_reason(content)
    _accepted_or_refused_with_a_reason(struct.pack("<Q", len(content)) + content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
def test_any_json_in_a_header_is_accepted_or_refused_with_a_reason(data: st.DataObject) -> None:
    def change(document: dict[str, Any]) -> None:
        entry = data.draw(st.sampled_from([*document, "extra"]))
        if isinstance(document.get(entry), dict) and data.draw(st.booleans()):
            below = data.draw(st.sampled_from([*document[entry], "extra"]))
            document[entry][below] = data.draw(json_values)
        else:
            document[entry] = data.draw(json_values)

    _accepted_or_refused_with_a_reason(rebuilt(change))


@pytest.mark.parametrize(
    ("codec", "files"), [("float32", 10_000), ("topk:0.1+int4", 5_000), ("topk:0.1+int8+zstd", 10_000)]
)
def test_mutated_files_are_accepted_or_refused_with_a_reason(
    written: Callable[..., Path], codec: str, files: int
) -> None:
    generator = random.Random(11)
    whole = written(codec).read_bytes()
    head = 8 + struct.unpack("<Q", whole[:8])[0]
    in_header = 0.5 if "zstd" in codec else 0.9
    for _ in range(files):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            where = generator.randrange(head if generator.random() < in_header else len(content))
            choice = generator.random()
            if choice < 0.6:
                content[where] = (
                    generator.choice(b'09{}[]",:-.eE\\ \x00\xff') if choice < 0.4 else generator.randrange(256)
                )
            elif choice < 0.8:
                del content[where : where + generator.randint(1, 8)]
            else:
                content[where:where] = content[where : where + generator.randint(1, 8)]
        if generator.random() < 0.5 and len(content) > 8:  # keep the length right, so that the JSON itself is reached
            content[:8] = struct.pack("<Q", max(0, head - 8 + len(content) - len(whole)))
        _accepted_or_refused_with_a_reason(bytes(content))
