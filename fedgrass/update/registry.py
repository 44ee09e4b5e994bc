"""Codecs by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedgrass.errors import UpdateError
from fedgrass.protocol.codec_name import CodecName, Values
from fedgrass.update.codecs import Codec, Float16, Float32
from fedgrass.update.quantized import Int4, Int8
from fedgrass.update.sparse import TopK

_VALUES: Mapping[Values, Codec] = {"float32": Float32(), "float16": Float16(), "int8": Int8(), "int4": Int4()}


@dataclass(frozen=True)
class UpdateCodec:
    """How an update is stored: its parameters by a codec, and all of it entropy-coded or not."""

    name: str
    parameters: Codec
    compressed: bool


@lru_cache(maxsize=64)
def codec_named(name: str) -> UpdateCodec:
    """Return the codec; raises `UpdateError` (``unknown_codec``) if the name is none (`CodecName`)."""
    try:
        parts = CodecName.parse(name)
    except ValueError as error:
        raise UpdateError("unknown_codec", str(error)) from error
    codec = _VALUES[parts.values]
    if parts.fraction is not None:
        codec = TopK(parts.fraction, codec)
    return UpdateCodec(name, codec, parts.zstd)
