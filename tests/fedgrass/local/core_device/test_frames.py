import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import MessageError
from fedgrass.local.core_device.ipc import frames
from fedgrass.local.core_device.ipc.frames import Message

names = st.text(min_size=1, max_size=40).filter(lambda text: 0 < len(text.encode()) < 256)
values = st.one_of(st.booleans(), st.integers(-(2**31), 2**31 - 1), st.text(max_size=100), st.binary(max_size=100))
messages = st.builds(Message, st.dictionaries(names, values, max_size=5), st.binary(max_size=500))


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert frames.decode(frames.encode(message)) == message


@given(messages, st.data())
def test_any_flipped_bit_is_noticed(message: Message, data: st.DataObject) -> None:
    frame = bytearray(frames.encode(message))
    position = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[position // 8] ^= 1 << (position % 8)
    with pytest.raises(MessageError):
        frames.decode(bytes(frame))


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_happens(noise: bytes) -> None:
    with pytest.raises(MessageError):
        frames.decode(noise)


def test_a_frame_of_the_specification_is_understood() -> None:
    # The empty message among the encoding's published test vectors.
    empty = bytes.fromhex("000000100000000005c248eb7d98c8ff")
    assert frames.decode(empty) == Message({}, b"")
    assert frames.encode(Message({}, b"")) == empty


def test_messages_are_read_from_a_stream_until_it_ends() -> None:
    async def scenario() -> list[Message | None]:
        reader = asyncio.StreamReader()
        reader.feed_data(frames.encode(Message({"a": 1}, b"x")) + frames.encode(Message({}, b"y"))[:-3])
        reader.feed_eof()
        return [await frames.read(reader), await frames.read(reader)]

    assert asyncio.run(scenario()) == [Message({"a": 1}, b"x"), None]


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    async def scenario() -> None:
        import struct
        import zlib

        prelude = struct.pack(">II", 2**31, 0)
        reader = asyncio.StreamReader()
        reader.feed_data(prelude + struct.pack(">I", zlib.crc32(prelude)))
        await frames.read(reader)

    with pytest.raises(MessageError, match="out of range"):
        asyncio.run(scenario())
