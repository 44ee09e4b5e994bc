from __future__ import annotations

import io
import itertools
import random
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle, Parameters, TensorDescription
from fedgrass.cloud.aggregator.lanes import lane_of
from fedgrass.cloud.aggregator.sources import UpdateReference, open_ahead
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.errors import BundleError, ConfigurationError, TransferError, UpdateError
from fedgrass.protocol.settings import Strategy
from fedgrass.strategies import strategy_named
from tests.fedgrass.cloud.aggregator.conftest import header, trained, update_bytes
from tests.fedgrass.cloud.aggregator.updates import Memory, combine, flat, tiny_model, update_of


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    st.integers(0, 2**32 - 1),
    st.integers(-20, 20),
)
def test_fedavg_equals_a_float64_reference(examples: list[int], seed: int, exponent: int) -> None:
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_model(Path(folder), 20, 13)
        deltas = [(generator.normal(size=33) * 10.0**exponent).astype(np.float32) for _ in examples]
        source = Memory(
            {
                f"t{i}": update_of(base, f"t{i}", delta, num_examples=count)
                for i, (count, delta) in enumerate(zip(examples, deltas, strict=True))
            }
        )
        found = combine(base, source)
    assert found.parameters is not None
    mean = np.average(np.array(deltas, np.longdouble), axis=0, weights=np.array(examples, np.longdouble))
    scale = float(np.abs(deltas).max())
    np.testing.assert_allclose(flat(found.parameters), mean.astype(np.float32), rtol=1e-6, atol=1e-6 * scale)
    assert sum(u.weight for u in found.updates) == pytest.approx(1)


def test_ten_thousand_updates_stay_within_a_millionth_of_the_reference(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, 1000)
    generator = np.random.default_rng(5)
    deltas = generator.normal(loc=0.01, size=(50, 1000)).astype(np.float32)
    specs = [("w0", np.dtype("<f4"), (1000,))]
    things = [f"t{i}" for i in range(10_000)]
    heads = {thing: tensors.encode_header(specs, header(base, thing).to_metadata()) for thing in things}

    class Many:
        def list(self) -> list[UpdateReference]:
            return [UpdateReference(thing=t, key=t, bytes=len(head) + 4000) for t, head in heads.items()]

        def open(self, reference: UpdateReference) -> Any:
            return Spliced(heads[reference.thing], deltas[int(reference.thing[1:]) % 50].tobytes())

    found = combine(base, Many())
    assert found.parameters is not None
    reference = deltas.astype(np.float64).mean(axis=0)
    deviation = np.abs(flat(found.parameters) - reference).max() / np.abs(reference).max()
    assert float(deviation) <= 1e-6


def test_the_order_in_which_storage_lists_updates_does_not_matter(digits: Bundle, tmp_path: Path) -> None:
    contents = {f"t{i}": update_bytes(digits, f"t{i}", i, tmp_path, num_examples=1 + i) for i in range(7)}
    first = combine(digits, Memory(contents))
    assert first.parameters is not None
    for seed in range(3):
        names = list(contents)
        random.Random(seed).shuffle(names)
        again = combine(digits, Memory({name: contents[name] for name in names}))
        assert again.parameters is not None
        assert again.updates == first.updates
        assert all(again.parameters[n].tobytes() == v.tobytes() for n, v in first.parameters.items())


@pytest.mark.parametrize("junk", [1, 63, 64, 65, 127, 128, 129, 256, 640])
@pytest.mark.parametrize("kind", ["header", "values"])
def test_a_run_of_refused_updates_counts_no_good_one_twice(tmp_path: Path, junk: int, kind: str) -> None:
    base = tiny_model(tmp_path, 7)
    lane = itertools.groupby(sorted((lane_of(f"t{i:05}"), f"t{i:05}") for i in range(16_000)), key=lambda pair: pair[0])
    things = [thing for _, thing in next(lane)[1]][: 128 + junk]
    ones = np.ones(7, np.float32)
    bad = b"\xff" * 200 if kind == "header" else None
    contents = {}
    for place, thing in enumerate(things):
        if 64 <= place < 64 + junk:
            contents[thing] = bad or update_of(base, thing, np.full(7, np.nan, np.float32))
        else:
            contents[thing] = update_of(base, thing, ones if place < 64 else -3 * ones)
    found = combine(base, Memory(contents))
    assert found.parameters is not None
    assert (len(found.updates), len(found.quarantined)) == (128, junk)
    np.testing.assert_array_equal(flat(found.parameters), -ones)


def test_codecs_can_be_mixed_in_a_round(digits: Bundle, tmp_path: Path) -> None:
    contents = {
        "a": update_bytes(digits, "a", 1, tmp_path, codec="float32"),
        "b": update_bytes(digits, "b", 2, tmp_path, codec="float16"),
    }
    found = combine(digits, Memory(contents))
    assert found.parameters is not None
    base = digits.parameters()
    for name, value in found.parameters.items():
        mean = (trained(base, 1)[name] - base[name] + trained(base, 2)[name] - base[name]) / 2
        np.testing.assert_allclose(value - base[name], mean, atol=2e-6)


class Spliced(io.RawIOBase):
    """A head and a body read as one file, without a copy of the body."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self._parts = [memoryview(head), memoryview(body)]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._parts and not self._parts[0]:
            self._parts.pop(0)
        if not self._parts:
            return 0
        count = min(len(buffer), len(self._parts[0]))
        memoryview(buffer)[:count] = self._parts[0][:count]
        self._parts[0] = self._parts[0][count:]
        return count


def test_memory_does_not_grow_with_the_number_of_updates(tmp_path: Path) -> None:
    wide = tiny_model(tmp_path, *[50_000] * 10)
    body = np.full(wide.manifest.parameter_count, 0.5, np.float32).tobytes()
    shapes = [(p.name, np.dtype("<f4"), p.shape) for p in wide.manifest.parameters]

    def head(thing: str) -> bytes:
        return tensors.encode_header(shapes, header(wide, thing).to_metadata())

    class Repeated:
        def __init__(self, count: int) -> None:
            self._count = count

        def list(self) -> list[UpdateReference]:
            things = [f"t{i}" for i in range(self._count)]
            return [UpdateReference(thing=t, key=t, bytes=len(head(t)) + len(body)) for t in things]

        def open(self, reference: UpdateReference) -> Any:
            return Spliced(head(reference.thing), body)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert len(combine(wide, Repeated(count)).updates) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(80), peak(160)  # either has a lane that is carried on
    assert many < few + len(body) / 4
    assert many < 16 * len(body)  # of which most are the blocks that are read side by side


def test_a_storage_failure_stops_the_round_and_closes_what_was_opened_ahead(digits: Bundle, tmp_path: Path) -> None:
    content = update_bytes(digits, "t0", 1, tmp_path)
    opened: list[io.BytesIO] = []

    class Failing(Memory):
        def open(self, reference: UpdateReference) -> io.BytesIO:
            if reference.thing == "t1":
                raise TransferError("the bucket does not answer")
            opened.append(io.BytesIO(content))
            return opened[-1]

    with pytest.raises(TransferError, match="does not answer"):
        combine(digits, Failing({f"t{i}": content for i in range(9)}))
    assert opened
    assert all(stream.closed for stream in opened)


def test_opening_ahead_keeps_the_order_and_hands_each_failure_to_its_own_update() -> None:
    class Some:
        def list(self) -> list[UpdateReference]:
            return [UpdateReference(thing=str(i), key=str(i), bytes=0) for i in range(30)]

        def open(self, reference: UpdateReference) -> io.BytesIO:
            if int(reference.thing) % 3 == 0:
                raise UpdateError("missing", "gone")
            return io.BytesIO(reference.thing.encode())

    seen = []
    for reference, opener in open_ahead(Some(), Some().list(), ahead=4):
        if int(reference.thing) % 3 == 0:
            with pytest.raises(UpdateError):
                opener()
        else:
            with opener() as stream:
                assert stream.read() == reference.thing.encode()
        seen.append(int(reference.thing))
    assert seen == list(range(30))


def test_only_floats_can_be_averaged() -> None:
    with pytest.raises(BundleError, match="step"):
        Layout([TensorDescription(name="step", shape=(), dtype="int32")])


def test_a_vector_gives_back_the_parameters_it_was_made_of(tmp_path: Path) -> None:
    layout = Layout(
        [
            TensorDescription(name="a", shape=(2, 3), dtype="float32"),
            TensorDescription(name="b", shape=(), dtype="float16"),
            TensorDescription(name="c", shape=(0, 4), dtype="float32"),
        ]
    )
    parameters: Parameters = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(0.5, np.float16),
        "c": np.zeros((0, 4), np.float32),
    }
    tensors.save(tmp_path / PARAMETERS, parameters)
    vector = np.full(layout.size, np.nan, np.float32)
    for span, values in layout.base_tiles(tmp_path / PARAMETERS, 4):
        vector[span] = values
    found = layout.unflatten(vector)
    assert list(found) == list(parameters)
    for name, value in parameters.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_an_unknown_strategy_or_option_is_named() -> None:
    assert Strategy().made().name == "fedavg"
    with pytest.raises(ConfigurationError, match="'fedmagic'"):
        strategy_named("fedmagic")
    with pytest.raises(ConfigurationError, match="speed"):
        strategy_named("fedavg", speed=11)
    with pytest.raises(ValidationError, match="speed"):
        Strategy(options={"speed": 11})
