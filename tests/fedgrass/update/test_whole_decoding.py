"""An update that is decoded in one go is what it is when it is streamed, in every codec and at every odd size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.errors import UpdateError
from fedgrass.update.codecs import Floats
from fedgrass.update.codecs.float16 import widen_halves
from fedgrass.update.registry import codec_named

CODECS = ("float32", "float16", "int8", "int4", "topk:0.05", "topk:0.3+float16", "topk:0.5+int8", "topk:0.2+int4")


def streamed(codec: str, sizes: list[int], content: bytes) -> Floats:
    stream = io.BytesIO(content)
    parts = []
    for place, size in enumerate(sizes):
        described = TensorDescription(name=f"w{place}", shape=(size,), dtype="float32")
        found = np.empty(size, np.float32)
        codec_named(codec).parameters.decoder(described, lambda a: tensors.read_into(stream, a, name="x"))(found)
        parts.append(found)
    assert not stream.read()
    return np.concatenate([*parts, np.zeros(0, np.float32)])


def whole(codec: str, sizes: list[int], content: bytes) -> Floats:
    decoder = codec_named(codec).parameters.whole(sizes)
    assert decoder.nbytes == len(content)
    found = np.full(sum(sizes), np.nan, np.float32)
    with np.errstate(all="ignore"):
        decoder.decode(np.frombuffer(bytearray(content), np.uint8), found)
    return found


def encoded(codec: str, sizes: list[int], seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    parts = []
    for place, size in enumerate(sizes):
        described = TensorDescription(name=f"w{place}", shape=(size,), dtype="float32")
        delta = generator.normal(size=size).astype(np.float32)
        parts += [one.tobytes() for one in codec_named(codec).parameters.encode(described, delta, generator)]
    return b"".join(parts)


sizes_of_a_model = st.lists(
    st.sampled_from([0, 1, 2, 7, 8, 9, 255, 256, 257, 1023, 1024, 1025, 2048, 16_383, 16_385, 40_000]),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODECS), sizes_of_a_model, st.integers(0, 99))
def test_decoded_in_one_go_it_is_what_it_is_when_streamed(codec: str, sizes: list[int], seed: int) -> None:
    content = encoded(codec, sizes, seed)
    assert whole(codec, sizes, content).tobytes() == streamed(codec, sizes, content).tobytes()


def test_bits_of_a_mask_that_mean_nothing_mean_nothing() -> None:
    sizes = [9, 3, 17]
    content = bytearray(encoded("topk:0.3", sizes, 1))
    plain = whole("topk:0.3", sizes, bytes(content)).tobytes()
    content[1] |= 0b1111_1110
    assert whole("topk:0.3", sizes, bytes(content)).tobytes() == plain
    assert streamed("topk:0.3", sizes, bytes(content)).tobytes() == plain


def test_a_mask_that_marks_another_number_is_refused_either_way() -> None:
    sizes = [16, 16]
    content = bytearray(encoded("topk:0.3", sizes, 1))
    content[0] ^= 1
    for decode in (whole, streamed):
        with pytest.raises(UpdateError, match="the mask marks"):
            decode("topk:0.3", sizes, bytes(content))


def test_every_half_is_widened_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype="<u2")
    wanted = halves.view("<f2").astype(np.float32)
    finite = np.isfinite(wanted)
    found = np.empty(len(halves), np.float32)
    widen_halves(halves, found)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    assert found[finite].tobytes() == wanted[finite].tobytes()
    some = halves[finite]
    found = np.empty(len(some), np.float32)
    widen_halves(some, found)
    assert found.tobytes() == wanted[finite].tobytes()
