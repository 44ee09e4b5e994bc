"""Decompressors are used again: what one made of a frame says nothing of the next, whether good, bad, or read meanwhile."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedgrass.errors import UpdateError
from fedgrass.update import entropy
from fedgrass.update.entropy import Decompressor, compress

SIZES = (1, 100, 5000, 40_000)


def content(number: int) -> bytes:
    generator = np.random.default_rng(number)
    return generator.integers(0, 4, SIZES[number % len(SIZES)], np.uint8).tobytes()


def opened(number: int, *, flaw: str = "") -> Decompressor:
    frame = bytearray(compress([np.frombuffer(content(number), np.uint8)]).tobytes())
    if flaw == "checksum":
        frame[-1] ^= 1
    if flaw == "more":
        frame += b"\0"
    return Decompressor(io.BytesIO(frame), len(frame))


def read(frame: Decompressor, size: int) -> bytes:
    found = bytearray(size)
    done = 0
    while done < size:
        done += frame.readinto(memoryview(found)[done:])
    return bytes(found)


def whole(frame: Decompressor, size: int) -> bytes:
    found = read(frame, size)
    frame.require_end()
    return found


def test_many_in_a_row_with_bad_ones_between() -> None:
    for number in range(60):
        if number % 3 == 1:
            with pytest.raises(UpdateError, match="frame"):
                whole(opened(number, flaw="checksum" if number % 2 else "more"), len(content(number)))
            continue
        frame = opened(number)
        assert whole(frame, len(content(number))) == content(number)
        frame.require_end()  # it is handed back once
        assert len(set(map(id, entropy._idle))) == len(entropy._idle) <= entropy._KEPT


def test_side_by_side_each_has_its_own() -> None:
    frames = [opened(number) for number in range(12)]
    found = [b""] * 12
    for _ in range(4):
        for number, frame in enumerate(frames):
            found[number] += read(frame, len(content(number)) // 4)
    for number, frame in enumerate(frames):
        found[number] += read(frame, len(content(number)) - len(found[number]))
        frame.require_end()
    assert found == [content(number) for number in range(12)]


def test_in_threads_each_has_its_own() -> None:
    def work(number: int) -> bool:
        return whole(opened(number), len(content(number))) == content(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))
