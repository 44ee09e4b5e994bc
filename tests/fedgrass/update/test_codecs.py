from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.errors import UpdateError
from fedgrass.protocol.codec_name import CodecName
from fedgrass.update.codecs import GRAIN, Floats
from fedgrass.update.entropy import Decompressor, compress
from fedgrass.update.reader import UpdateReader
from fedgrass.update.registry import codec_named
from tests.fedgrass.update.conftest import HEADER

LEVELS = {"int8": (127, 1024), "int4": (7, 256)}


def roundtrip(name: str, delta: Floats, seed: int = 0) -> tuple[Floats, int]:
    """Decoded values and bytes stored."""
    codec = codec_named(name).parameters
    parameter = TensorDescription(name="w", shape=(len(delta),), dtype="float32")
    encoded = codec.encode(parameter, delta.copy(), np.random.default_rng(seed))
    for tensor, layout in zip(encoded, codec.layout(parameter), strict=True):
        assert (tensor.dtype, tensor.shape) == (layout.dtype, layout.shape)
    stream = io.BytesIO(b"".join(tensor.tobytes() for tensor in encoded))
    size = len(stream.getbuffer())
    fill = codec.decoder(parameter, lambda array: tensors.read_into(stream, array, name="w"))
    found = np.full(len(delta), np.nan, np.float32)
    for start in range(0, len(found), GRAIN):
        fill(found[start : start + GRAIN])
    assert stream.read() == b""
    return found, size


deltas = arrays(np.float32, st.integers(0, 3000), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@pytest.mark.parametrize("name", LEVELS)
@given(delta=deltas)
def test_an_integer_is_off_by_less_than_one_step_of_its_group(name: str, delta: Floats) -> None:
    levels, group = LEVELS[name]
    found, _ = roundtrip(name, delta)
    assert len(found) == len(delta)
    for start in range(0, len(delta), group):
        piece, there = delta[start : start + group].astype(np.float64), found[start : start + group]
        step = np.abs(piece).max() / levels
        assert np.all(np.abs(there - piece) <= step * 1.0001 + 1e-37)


@pytest.mark.parametrize("name", LEVELS)
def test_rounding_is_right_on_average_and_the_same_for_a_seed(name: str) -> None:
    delta = np.random.default_rng(3).normal(size=2000).astype(np.float32)
    np.testing.assert_array_equal(roundtrip(name, delta, 1)[0], roundtrip(name, delta, 1)[0])
    mean = np.mean([roundtrip(name, delta, seed)[0] for seed in range(400)], axis=0)
    step = np.abs(delta).max() / LEVELS[name][0]
    assert np.abs(mean - delta).max() < step * 5 * 0.5 / np.sqrt(400)


@given(delta=deltas, fraction=st.sampled_from(["0.01", "0.25", "0.999999"]))
def test_top_k_sends_the_largest_scalars_and_nothing_else(delta: Floats, fraction: str) -> None:
    found, _ = roundtrip(f"topk:{fraction}", delta)
    sent = found != 0
    np.testing.assert_array_equal(found[sent], delta[sent])
    count = min(len(delta), max(1, int(np.ceil(float(fraction) * len(delta)))))
    assert sent.sum() <= count
    if len(delta):
        assert np.abs(delta[~sent]).max(initial=0) <= np.sort(np.abs(delta))[len(delta) - count]


@pytest.mark.parametrize(
    ("name", "most"),
    [("float32", 4.0), ("float16", 2.0), ("int8", 1.01), ("int4", 0.52), ("topk:0.05", 0.33), ("topk:0.02+int4", 0.14)],
)
def test_a_codec_costs_the_bytes_per_scalar_that_the_docs_say(name: str, most: float) -> None:
    delta = np.random.default_rng(3).normal(size=100_000).astype(np.float32)
    assert roundtrip(name, delta)[1] / len(delta) <= most


@pytest.mark.parametrize(
    "name",
    [
        "",
        "zstd",
        "+zstd",
        "int8+",
        "int8+topk:0.1",
        "topk:0",
        "topk:0.0",
        "topk:1",
        "topk:0.1int8",
        "int8+int4",
        "topk:0.1+",
    ],
)
def test_a_name_outside_the_grammar_is_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(UpdateError, match="expected one of float16, float32") as raised:
        codec_named(name)
    assert raised.value.code == "unknown_codec"


def test_a_name_says_what_is_done() -> None:
    assert CodecName.parse("topk:0.02+int4+zstd") == CodecName(0.02, "int4", True)
    assert CodecName.parse("topk:0.05") == CodecName(0.05, "float32", False)
    assert CodecName.parse("int8") == CodecName(None, "int8", False)


def test_a_mask_that_marks_another_number_of_scalars_is_refused() -> None:
    codec = codec_named("topk:0.1").parameters
    parameter = TensorDescription(name="w", shape=(100,), dtype="float32")
    mask, values = codec.encode(parameter, np.ones(100, np.float32), np.random.default_rng(0))
    for wrong in (mask | 255, mask & 0):
        stream = io.BytesIO(wrong.tobytes() + values.tobytes())
        with pytest.raises(UpdateError, match="marks") as raised:
            codec.decoder(parameter, lambda array, s=stream: tensors.read_into(s, array, name="w"))  # type: ignore[misc]
        assert raised.value.code == "corrupt_data"


def _frame_refusal(frame: bytes, expected: int) -> str:
    with pytest.raises(UpdateError) as raised:
        _unpacked(frame, expected)
    return raised.value.code


def _unpacked(frame: bytes, expected: int) -> bytes:
    found = np.empty(expected, np.uint8)
    decompressor = Decompressor(io.BytesIO(frame), len(frame))
    tensors.read_into(decompressor, found, name="update")
    decompressor.require_end()
    return found.tobytes()


def test_a_frame_must_hold_exactly_what_the_model_calls_for() -> None:
    frame = compress([np.arange(1000, dtype=np.uint8)]).tobytes()
    assert _unpacked(frame, 1000) == np.arange(1000, dtype=np.uint8).tobytes()
    for other in (999, 1001):
        assert _frame_refusal(frame, other) == "corrupt_data"
    assert _frame_refusal(b"\0" * 50, 1000) == "corrupt_data"
    assert _frame_refusal(frame[:20] + bytes([frame[20] ^ 1]) + frame[21:], 1000) == "corrupt_data"


def test_a_window_beyond_the_bound_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(bytes(1000)) + compressor.flush()
    assert _frame_refusal(frame, 1000) == "corrupt_data"


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """256 MiB of zeros in some ten KB, sent as an update of a small model."""
    block = zstandard.ZstdCompressor(level=1).compressobj()
    chunk = bytes(1 << 22)
    frame = b"".join([*(block.compress(chunk) for _ in range(64)), block.flush()])
    described = TensorDescription(name="w", shape=(len(frame),), dtype="float32")
    metadata = HEADER.model_copy(update={"codec": "float32+zstd"}).to_metadata()
    tensors.save(tmp_path / "bomb", {"zstd": np.frombuffer(frame, np.uint8)}, metadata)
    content = (tmp_path / "bomb").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = UpdateReader(io.BytesIO(content), file_bytes=len(content), parameters=(described,))
    reader.fill(np.empty(described.size, np.float32))
    with pytest.raises(UpdateError, match="more than the model"):
        reader.require_end()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_settings_refuse_an_unknown_codec_without_numpy() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from fedgrass.protocol.settings import FleetSettings\n"
        "from fedgrass.errors import ConfigurationError\n"
        "FleetSettings().overridden({'update': {'codec': 'topk:0.02+int8+zstd'}})\n"
        "try:\n FleetSettings().overridden({'update': {'codec': 'morse'}})\n"
        "except ConfigurationError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "update.codec" in said
    assert "expected one of float16, float32" in said
