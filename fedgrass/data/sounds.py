"""One WAV file as the model's x: its channels' mean, from -1 to 1, at the model's own rate and length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.errors import DataError
from fedgrass.tensors import Array

SUFFIXES = (".wav", ".wave")
UNREAD = (".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wma")
"""Sounds that are not read; they are counted as bad, and not overlooked."""

# Bytes of a format that mean something here.
_MOST_FORMAT = 40
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Of a file's samples, before they are read: ten minutes in stereo at 48 kHz and 32 bits.
_MOST_BYTES = 256 << 20


class _Format(NamedTuple):
    kind: int
    channels: int
    rate: int
    bits: int


class Sounds:
    """Reads sounds for one model: the first samples of each, with silence after one that is shorter.

    Parameters
    ----------
    manifest
        Its x is [samples] or [samples, 1]; its ``data.sample_rate``, if it names one, is what each file must have.

    Raises
    ------
    DataError
        If the model takes no sounds.
    """

    unit = "sounds"
    suffixes = SUFFIXES
    unread = UNREAD

    def __init__(self, manifest: Manifest, what: str) -> None:
        self._shape, self._dtype = manifest.x.shape, np.dtype(manifest.x.dtype)
        self._rate = manifest.data.sample_rate
        if self._dtype.kind != "f" or len(self._shape) not in (1, 2) or self._shape[1:] not in ((), (1,)):
            raise DataError(
                f"{what}: model {manifest.name!r} takes x {list(self._shape)} of {self._dtype}; sounds need x [samples] of "
                "float32"
            )

    def read(self, file: Path) -> Array:
        """Return x [samples] or [samples, 1]; raises `DataError` if the file is not such a sound."""
        if file.suffix.lower() in UNREAD:
            raise DataError(f"data {file}: {file.suffix[1:].upper()} is not read; convert it to WAV")
        try:
            with file.open("rb") as stream:
                form, content = _read(stream, self._shape[0])
        except OSError as error:
            raise DataError(f"data {file}: cannot be read ({error.strerror or error})") from error
        except (ValueError, struct.error) as error:
            reason = "its head is cut short" if isinstance(error, struct.error) else error
            raise DataError(f"data {file}: is no readable WAV file ({reason})") from error
        if self._rate is not None and form.rate != self._rate:
            raise DataError(f"data {file}: has {form.rate} samples a second, the model takes {self._rate}; convert it")
        samples = np.zeros(self._shape[0], np.float32)
        found = _samples(content, form).reshape(-1, form.channels).mean(axis=1)
        if not len(found) or not np.isfinite(found).all():
            raise DataError(f"data {file}: {'has no samples' if not len(found) else 'has samples that are not finite'}")
        samples[: len(found)] = found
        return samples.reshape(self._shape).astype(self._dtype)


def _read(stream: BinaryIO, count: int) -> tuple[_Format, bytes]:
    """Return a file's format and its first samples; raises `ValueError` with what is wrong."""
    riff, _, wave = struct.unpack("<4sI4s", stream.read(12))
    if (riff, wave) != (b"RIFF", b"WAVE"):
        raise ValueError("it does not begin with RIFF … WAVE")
    form: _Format | None = None
    while len(head := stream.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"fmt ":
            form = _format(stream.read(min(size, _MOST_FORMAT)))
            stream.seek(max(0, size - _MOST_FORMAT) + size % 2, 1)
        elif name == b"data":
            if form is None:
                raise ValueError("no format before its samples")
            wanted = count * form.channels * form.bits // 8
            if wanted > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes for one example")
            content = stream.read(min(size, wanted))
            # A recorder that was cut off leaves a shorter file than its head says; a streamed one says 0xFFFFFFFF.
            if len(content) < min(size, wanted) and size < 0xFFFFFFF0:
                raise ValueError("it is cut short")
            frame = form.channels * form.bits // 8
            return form, content[: len(content) // frame * frame]
        else:
            stream.seek(size + size % 2, 1)
    raise ValueError("it has no samples")


def _format(content: bytes) -> _Format:
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
    if kind == _EXTENSIBLE and len(content) >= 26:
        kind = struct.unpack("<H", content[24:26])[0]
    if (kind, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise ValueError(f"format {kind} of {bits} bits; PCM of 8 to 32 bits and float are read")
    if not 1 <= channels <= 64:
        raise ValueError(f"{channels} channels")
    return _Format(kind, channels, rate, bits)


def _samples(content: bytes, form: _Format) -> Array:
    """Return samples from -1 to 1, channels in turn."""
    if form.kind == _FLOAT:
        return np.frombuffer(content, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:  # these alone have no sign
        return np.asarray((np.frombuffer(content, np.uint8).astype(np.float32) - 128) / np.float32(128))
    if form.bits == 24:
        parts = np.frombuffer(content, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(parts), 4), np.uint8)
        wide[:, 1:] = parts  # in the upper bytes, so that the sign is the integer's own
        return np.asarray(wide.view("<i4")[:, 0] / 2.0**31, np.float32)
    return np.asarray(np.frombuffer(content, f"<i{form.bits // 8}") / 2.0 ** (form.bits - 1), np.float32)
