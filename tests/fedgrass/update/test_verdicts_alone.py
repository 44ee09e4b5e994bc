"""What becomes of an update depends on that file alone: not on the files before it, nor on how fast its header could be read."""

from __future__ import annotations

import io
import itertools
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.errors import FedgrassError, UpdateError
from fedgrass.update import reader
from fedgrass.update.header import UpdateHeader
from fedgrass.update.reader import UpdateReader
from tests.fedgrass.update.conftest import HEADER

MODEL = (
    TensorDescription(name="one", shape=(1,), dtype="float32"),
    TensorDescription(name="wide", shape=(64, 1), dtype="float32"),
)
VALUES = np.arange(65, dtype="<f4").tobytes()
SPECS = [(one.name, np.dtype("<f4"), one.shape) for one in MODEL]


def file_of(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + VALUES


def with_text(change: Callable[[str], str]) -> bytes:
    """A good update whose header's text is changed."""
    return file_of(change(tensors.encode_header(SPECS, HEADER.to_metadata())[8:].decode()).encode())


def with_field(name: str, value: str) -> bytes:
    return file_of(tensors.encode_header(SPECS, {**HEADER.to_metadata(), name: value})[8:])


def verdict(content: bytes) -> tuple[Any, ...]:
    """The reason, or what was understood."""
    try:
        found = UpdateReader(io.BytesIO(content), file_bytes=len(content), parameters=MODEL)
        values = np.empty(65, np.float32)
        for span in Layout(MODEL).tiles(1024):
            found.fill(values[span])
        found.require_end()
    except UpdateError as error:
        return (error.code,)
    return "accepted", repr(found.header), values.tobytes()


GOOD = with_text(lambda text: text)
FILES: dict[str, tuple[str, bytes]] = {
    "as we write it": ("accepted", GOOD),
    "spaced": ("accepted", with_text(lambda text: json.dumps(json.loads(text)))),
    "metadata last": (
        "accepted",
        with_text(lambda text: json.dumps({k: json.loads(text)[k] for k in ("wide", "one", "__metadata__")})),
    ),
    "a name in escapes": ("accepted", with_text(lambda text: text.replace('"one"', '"\\u006fne"'))),
    "float shape": ("corrupt_header", with_text(lambda text: text.replace("[64,1]", "[64.0,1]"))),
    "true shape": ("corrupt_header", with_text(lambda text: text.replace('"shape":[1]', '"shape":[true]'))),
    "true in a shape": ("corrupt_header", with_text(lambda text: text.replace("[64,1]", "[64,true]"))),
    "exponent shape": ("corrupt_header", with_text(lambda text: text.replace("[64,1]", "[64e0,1]"))),
    "float offset": ("corrupt_header", with_text(lambda text: text.replace("[0,4]", "[0,4.0]"))),
    "false offset": ("corrupt_header", with_text(lambda text: text.replace("[0,4]", "[false,4]"))),
    "minus zero": ("corrupt_header", with_text(lambda text: text.replace("[0,4]", "[-0.0,4]"))),
    "text offset": ("corrupt_header", with_text(lambda text: text.replace("[0,4]", '["0",4]'))),
    "nan shape": ("corrupt_header", with_text(lambda text: text.replace("[64,1]", "[NaN,1]"))),
    "infinite offset": ("corrupt_header", with_text(lambda text: text.replace("[0,4]", "[0,Infinity]"))),
    "a tensor twice": (
        "corrupt_header",
        with_text(lambda text: text.rstrip()[:-1] + ',"one":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    ),
    "metadata twice": ("corrupt_header", with_text(lambda text: text.replace("{", '{"__metadata__":{},', 1))),
    "a field twice": (
        "corrupt_header",
        with_text(lambda text: text.replace('"round":"7"', '"round":"7","round":"7"')),
    ),
    "a shape twice": ("corrupt_header", with_text(lambda text: text.replace('"shape":[1]', '"shape":[1],"shape":[1]'))),
    "another script's name": ("wrong_parameters", with_text(lambda text: text.replace('"one"', '"οne"'))),
    "surrogate name": ("wrong_parameters", with_text(lambda text: text.replace('"one"', '"\\ud800"'))),
    "a mark of byte order": ("corrupt_header", with_text(lambda text: "\ufeff" + text)),
    "number in the metadata": ("corrupt_header", with_text(lambda text: text.replace('"round":"7"', '"round":7'))),
    "lower case dtype": ("corrupt_header", with_text(lambda text: text.replace('"F32"', '"f32"', 1))),
    "more behind": ("corrupt_header", with_text(lambda text: text + "{}")),
    "a form feed behind": ("corrupt_header", with_text(lambda text: text.rstrip() + "\f")),
    "float round": ("corrupt_header", with_field("round", "7.0")),
    "spaced round": ("corrupt_header", with_field("round", " 7")),
    "signed round": ("corrupt_header", with_field("round", "+7")),
    "underscored examples": ("bad_examples", with_field("num_examples", "1_000")),
    "float examples": ("bad_examples", with_field("num_examples", "120.0")),
    "zeros before examples": ("bad_examples", with_field("num_examples", "0120")),
    "examples in another script": ("bad_examples", with_field("num_examples", "١٢")),
    "examples on two lines": ("bad_examples", with_field("num_examples", "12\n")),
    "true metric": ("corrupt_header", with_field("metrics", '{"loss":true}')),
    "text metric": ("corrupt_header", with_field("metrics", '{"loss":"0.5"}')),
    "null metric": ("corrupt_header", with_field("metrics", '{"loss":null}')),
    "nan metric": ("corrupt_header", with_field("metrics", '{"loss":NaN}')),
    "endless metric": ("corrupt_header", with_field("metrics", '{"loss":1e999}')),
    "a metric twice": ("corrupt_header", with_field("metrics", '{"loss":1,"loss":2}')),
    "metrics in a list": ("corrupt_header", with_field("metrics", '[{"loss":1}]')),
    "codec on two lines": ("unknown_codec", with_field("codec", "float32\n")),
    "codec in another script": ("unknown_codec", with_field("codec", "topk:0.١")),
    "thing on two lines": ("corrupt_header", with_field("thing", "press-01\n")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_header_has_the_verdict_that_is_its_own(name: str) -> None:
    expected, content = FILES[name]
    assert verdict(content)[0] == expected


def test_the_files_before_change_no_verdict() -> None:
    contents = [content for _, content in FILES.values()]
    alone = []
    for content in contents:
        reader._form.cache_clear()
        alone.append(verdict(content))
    for first, second in itertools.product(range(len(contents)), repeat=2):
        reader._form.cache_clear()
        verdict(contents[first])
        assert verdict(contents[second]) == alone[second], (list(FILES)[first], list(FILES)[second])
    order = random.Random(1)
    for _ in range(300):
        chosen = order.randrange(len(contents))
        assert verdict(contents[chosen]) == alone[chosen]


def test_codecs_of_many_names_push_out_what_is_known_and_nothing_else() -> None:
    model = (TensorDescription(name="w", shape=(64,), dtype="float32"),)
    for place in (*range(1, 30), *range(1, 30)):
        header = HEADER.model_copy(update={"codec": f"topk:0.{place:03d}"})
        sent = max(1, -(-64 * place // 1000))
        specs: list[tuple[str, Any, tuple[int, ...]]] = [
            ("w#mask", np.dtype("<u1"), (8,)),
            ("w", np.dtype("<f4"), (sent,)),
        ]
        content = tensors.encode_header(specs, header.to_metadata()) + bytes(8 + 4 * sent)
        assert UpdateReader(io.BytesIO(content), file_bytes=len(content), parameters=model).header == header


def parsed(content: bytes, known: tensors.Known) -> Any:
    try:
        found = tensors.read_header(io.BytesIO(content), file_bytes=len(content), known=known)
    except FedgrassError as error:
        return type(error)
    return found.tensors, dict(found.metadata), found.data_offset


def test_a_known_header_is_read_as_an_unknown_one_whatever_its_metadata() -> None:
    known = dict([tensors.known_header(SPECS)])
    chance = random.Random(3)
    pieces = [
        '"',
        "\\",
        "}",
        "{",
        '},"',
        ",",
        ":",
        " ",
        "x",
        '"a":"b"',
        '{"',
        "\\u007d",
        "[",
        "]",
        '"__metadata__":{}',
        "\n",
    ]
    assert parsed(GOOD, known) == parsed(GOOD, {})
    hits = 0
    for _ in range(20_000):
        text = tensors.encode_header(SPECS, HEADER.to_metadata())[8:].decode()
        end = text.find('"one"')
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(end)
            text = text[:at] + chance.choice(pieces) + text[at + chance.choice((0, 0, 1, 2)) :]
        content = file_of(text.encode())
        found = parsed(content, known)
        assert found == parsed(content, {}), text
        hits += not isinstance(found, type)
    assert hits > 500


def test_a_header_is_what_it_says_again() -> None:
    again = UpdateHeader.from_metadata(HEADER.to_metadata())
    assert again == HEADER
    assert again.to_metadata() == HEADER.to_metadata()
