"""Codecs by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fedgrass.errors import ConfigurationError, UpdateError
from fedgrass.parts import CODECS
from fedgrass.protocol.codec_name import CodecName
from fedgrass.update.codecs import Codec
from fedgrass.update.sparse import TopK


@dataclass(frozen=True)
class UpdateCodec:
    """How an update is stored: its parameters by a codec, and all of it entropy-coded or not."""

    name: str
    parameters: Codec
    compressed: bool


@lru_cache(maxsize=64)
def codec_named(name: str) -> UpdateCodec:
    """Return the codec; raises `UpdateError` (``unknown_codec``) if it is not a codec's name (`CodecName`)."""
    try:
        parts = CodecName.parse(name)
    except ValueError as error:
        raise UpdateError("unknown_codec", str(error)) from error
    try:
        codec: Codec = CODECS.get(parts.values)
    except ConfigurationError as error:  # registered here, and not fit for use
        raise UpdateError("unknown_codec", str(error)) from error
    if parts.fraction is not None:
        codec = TopK(parts.fraction, codec)
    return UpdateCodec(name, codec, parts.zstd)
