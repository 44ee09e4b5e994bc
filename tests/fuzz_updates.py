"""``python -m tests.fuzz_updates``: mutated update files through the aggregator's reader.

Every file must be accepted, or refused with one of the known reasons, in bounded memory and time. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import struct
import time
from collections import Counter
from typing import Any, get_args

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.cloud.aggregator.arithmetic import sum_of_squares
from fedgrass.cloud.aggregator.vector import Layout
from fedgrass.errors import UpdateError
from fedgrass.update.codecs import GRAIN
from fedgrass.update.header import Reason, UpdateHeader
from fedgrass.update.reader import UpdateReader
from fedgrass.update.registry import codec_named

PARAMETERS = (
    TensorDescription(name="conv/kernel", shape=(3, 3, 8), dtype="float32"),
    TensorDescription(name="conv/bias", shape=(8,), dtype="float32"),
    TensorDescription(name="dense/kernel", shape=(60, 50), dtype="float32"),
)
CODECS = ("float32", "float16", "int8", "int4", "topk:0.1", "topk:0.1+int8", "int8+zstd", "topk:0.1+int4+zstd")
ODD = (
    b"\xff" * 8,
    b"\x00" * 8,
    b"1e999",
    b'"',
    b"{",
    b"}",
    b"[" * 50,
    b"-1",
    b"9" * 30,
    struct.pack("<f", float("nan")),
)
SLOW_SECONDS = 1.0


def seeds() -> list[bytes]:
    """Return a good update in each codec."""
    generator = np.random.default_rng(0)
    made = []
    for name in CODECS:
        codec = codec_named(name)
        stored: dict[str, tensors.Array] = {}
        for parameter in PARAMETERS:
            delta = generator.normal(size=parameter.size).astype(np.float32)
            encoded = codec.parameters.encode(parameter, delta, generator)
            for tensor, values in zip(codec.parameters.layout(parameter), encoded, strict=True):
                stored[tensor.name] = values
        if codec.compressed:
            from fedgrass.update.entropy import TENSOR, compress

            stored = {TENSOR: compress(stored.values())}
        header = UpdateHeader(
            fleet="f", round=1, thing="t", base_sha256="0" * 64, graph_sha256="0" * 64, num_examples=9, codec=name
        )
        specs = [(n, v.dtype, v.shape) for n, v in stored.items()]
        made.append(tensors.encode_header(specs, header.to_metadata()) + b"".join(v.tobytes() for v in stored.values()))
    return made


ODD_VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1, 7, 1 << 31, 1 << 64, 0.5, "", "x", "1e999", "nan", "F32", "I8", "U8", "float16", "topk:2", "../t",
    "\ud800", "9" * 5000, [], [0], [1, 2], [-1], [1 << 62], [0, 1 << 62], {}, {"dtype": "F32"}, "t" * 300,
)  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the file with something wrong with it: in its header's meaning, or in its bytes."""
    return _header_mutated(content, chance) if chance.random() < 0.5 else _bytes_mutated(content, chance)


def _header_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the file with one to three entries of its header changed, added, renamed or gone; it stays good JSON."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = header.get("__metadata__") if chance.random() < 0.5 else chance.choice([header, *header.values()])
        if not isinstance(place, dict) or not place:
            continue
        key = chance.choice(list(place))
        value = chance.choice(ODD_VALUES)
        if place is header.get("__metadata__") and chance.random() < 0.9:
            value = str(value)  # as all metadata must be: what it says is then judged
        match chance.randrange(4):
            case 0:
                del place[key]
            case 1:
                place[str(chance.choice(ODD_VALUES))] = place.pop(key)
            case 2:
                place[str(chance.choice(ODD_VALUES))] = value
            case _:
                place[key] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _bytes_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the file with one to four pieces of it changed, more often in the header than elsewhere."""
    file = bytearray(content)
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(chance.randint(1, 4)):
        end = min(len(file), length + 8) if chance.random() < 0.4 else len(file)
        at = chance.randrange(max(1, end))
        match chance.randrange(7):
            case 0:
                file[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del file[at : at + chance.randint(1, 40)]
            case 2:
                file[at:at] = chance.choice(ODD)
            case 3:
                file[at : at + 8] = chance.choice(ODD)
            case 4:
                file[:8] = struct.pack("<Q", chance.choice([0, 1, length - 1, length + 8, 1 << 31, (1 << 64) - 1]))
            case 5:
                del file[chance.randrange(len(file) + 1) :]
            case _:
                other = chance.randrange(max(1, end))
                file[at : at + 20] = file[other : other + 20]
    return bytes(file)


def read(content: bytes) -> str:
    """Read a file as the aggregator does, whole and tile by tile; returns ``accepted``, or the reason."""
    verdicts = {_read_whole(content), _read_tiles(content)}
    if len(verdicts) > 1 and verdicts != {"corrupt_data", "not_finite"}:  # whichever shows first
        raise AssertionError(f"the two ways to read an update find {sorted(verdicts)}")
    return verdicts.pop()


def _read_whole(content: bytes) -> str:
    try:
        values = np.empty(Layout(PARAMETERS).size, np.float32)
        UpdateReader(io.BytesIO(content), file_bytes=len(content), parameters=PARAMETERS).read_whole(values)
        with np.errstate(all="ignore"):
            sum_of_squares(values)
    except UpdateError as error:
        return error.code
    return "accepted"


def _read_tiles(content: bytes) -> str:
    try:
        reader = UpdateReader(io.BytesIO(content), file_bytes=len(content), parameters=PARAMETERS)
        for span in Layout(PARAMETERS).tiles(GRAIN):
            values = np.empty(span.stop - span.start, np.float32)
            reader.fill(values)
            with np.errstate(all="ignore"):
                sum_of_squares(values)
        reader.require_end()
    except UpdateError as error:
        return error.code
    return "accepted"


def fuzz(files: int, seed: int = 0) -> dict[str, Any]:
    """Read so many mutated files; whatever is neither accepted nor refused with a reason is raised."""
    chance = random.Random(seed)
    good = seeds()
    for content in good:
        if (verdict := read(content)) != "accepted":
            raise AssertionError(f"an unharmed update was refused: {verdict}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons: Counter[str] = Counter()
    slowest, start = 0.0, time.perf_counter()
    for _ in range(files):
        content = mutated(chance.choice(good), chance)
        began = time.process_time()
        reasons[read(content)] += 1
        slowest = max(slowest, time.process_time() - began)
    unknown = set(reasons) - {"accepted", *get_args(Reason)}
    if unknown or slowest > SLOW_SECONDS:
        raise AssertionError(f"unknown reasons {sorted(unknown)}, slowest file {slowest:.3f} s of CPU")
    return {
        "files": files,
        "seconds": round(time.perf_counter() - start, 2),
        "slowest_file_seconds": round(slowest, 4),
        "memory_grew_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
        "verdicts": dict(reasons.most_common()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(fuzz(arguments.files, arguments.seed)))
