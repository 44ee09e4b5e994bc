"""Reading an update as a stream, trusting nothing: sizes are bounded before memory is taken.

The header is compared with what the model's manifest expects before a single tensor byte is read; what is left to the
caller is to judge the claims (fleet, round, base, …) and the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from fedgrass import tensors
from fedgrass.bounds import MAX_HEADER_BYTES
from fedgrass.bundle import TensorDescription
from fedgrass.errors import TensorFileError, TruncatedFileError, UpdateError
from fedgrass.tensors import TensorSpec
from fedgrass.update.codecs import Fill, Floats, StoredTensor, Whole, scratch
from fedgrass.update.codecs.float32 import Float32
from fedgrass.update.entropy import TENSOR, Decompressor
from fedgrass.update.header import MAX_METADATA_BYTES, UpdateHeader
from fedgrass.update.registry import UpdateCodec, codec_named

_HEADER_BYTES_PER_TENSOR = 256  # dtype, shape and offsets at their longest


class UpdateReader:
    """An update file, opened: its header is checked, its tensors are still to come.

    Parameters
    ----------
    stream
        Positioned at the start; needs ``read`` and ``readinto``.
    file_bytes
        The object's whole size, as storage says.
    parameters
        The model's parameters, in the manifest's order; or their `UpdateForm`, made once for many updates.

    Raises
    ------
    UpdateError
        Coded ``too_large``, ``truncated``, ``corrupt_header``, ``wrong_schema``, ``bad_examples``, ``unknown_codec``,
        ``wrong_parameters``, ``wrong_dtype`` or ``wrong_shape``.
    """

    def __init__(
        self, stream: BinaryIO, *, file_bytes: int, parameters: UpdateForm | Sequence[TensorDescription]
    ) -> None:
        form = parameters if isinstance(parameters, UpdateForm) else _form(tuple(parameters))
        if file_bytes > form.max_bytes:
            raise UpdateError("too_large", f"{file_bytes} bytes; an update of this model has at most {form.max_bytes}")
        self._stream = stream
        self._form = form
        header = _read_header(stream, file_bytes, form)
        # Claims only: fleet, round and base are for the caller to judge.
        self.header = UpdateHeader.from_metadata(header.metadata)
        codec = codec_named(self.header.codec)
        self._codec = codec.parameters
        self._parameters = iter(form.parameters)
        self._left = 0  # scalars of the parameter that is being decoded
        self._decode: Fill = self._read
        self._frame: Decompressor | None = None
        if codec.compressed:
            size = file_bytes - header.data_offset
            require_layout(header.tensors, [StoredTensor(TENSOR, np.dtype("<u1"), (size,))])
            self._frame = Decompressor(stream, size)
        else:
            # From here on the header has told nothing that was not expected of this model.
            form.require(header.tensors, codec)

    def fill(self, values: Floats) -> None:
        """Fill an array with the next scalars of the difference: all parameters in a row, in the manifest's order.

        An array ends where a parameter does, or a whole number of `GRAIN` scalars after a parameter's start.

        Raises
        ------
        UpdateError
            Coded ``truncated`` if the stream ends early; ``corrupt_data`` if the bytes are not what the codec makes.
        """
        if isinstance(self._codec, Float32):  # then the file's bytes are that row itself
            self._read(values)
            return
        while len(values):
            if not self._left:
                parameter = next(self._parameters)
                self._left = parameter.size
                self._decode = self._codec.decoder(parameter, self._read)
            # An array may span parameters, each with its own decoder.
            part, values = values[: self._left], values[self._left :]
            self._decode(part)
            self._left -= len(part)

    def read_whole(self, values: Floats) -> None:
        """Fill an array with all scalars of the difference, instead of `fill` and `require_end`: faster for a small model.

        Raises
        ------
        UpdateError
            As by `fill` and `require_end`.
        """
        if isinstance(self._codec, Float32):
            self._read(values)
        else:
            whole = self._form.whole(self.header.codec)
            stored = scratch("stored", whole.nbytes, np.dtype(np.uint8))
            self._read(stored)
            with np.errstate(all="ignore"):
                whole.decode(stored, values)
        self.require_end()

    def require_end(self) -> None:
        """Raise `UpdateError` (``corrupt_data``) if there is more behind the last scalar; call it when all were read."""
        if self._frame is not None:
            self._frame.require_end()

    def _read(self, array: tensors.Array) -> None:
        try:
            tensors.read_into(self._frame or self._stream, array, name="update")
        except TruncatedFileError as error:
            raise UpdateError("truncated", str(error)) from error


def max_update_bytes(parameters: Sequence[TensorDescription]) -> int:
    """Return the size that no update of this model exceeds, whatever its codec.

    float32 is the longest, but for a few bytes of scales and masks, and what a frame adds to data that cannot be compressed.
    """
    longest = sum(4 * parameter.size + 16 for parameter in parameters)
    # 8 bytes are the header's length; Zstandard adds at most 1/256 of incompressible data and some bytes for each
    # frame.
    return 8 + _max_header_bytes(parameters) + longest + longest // 128 + 1024


def _max_header_bytes(parameters: Sequence[TensorDescription]) -> int:
    # A codec stores a parameter as a few tensors; JSON spells a character of a name with six at most.
    names = sum(6 * len(parameter.name) + _HEADER_BYTES_PER_TENSOR for parameter in parameters)
    return min(MAX_HEADER_BYTES, MAX_METADATA_BYTES + 4 * names)


class UpdateForm:
    """What update files of a model look like: found once, not for each of thousands. Several threads may use it."""

    def __init__(self, parameters: Sequence[TensorDescription]) -> None:
        self.parameters = tuple(parameters)
        self.max_bytes = max_update_bytes(parameters)
        self.max_header_bytes = _max_header_bytes(parameters)
        self.known: dict[bytes, tensors.Specs] = {}
        self._specs: dict[str, tensors.Specs] = {}
        self._wholes: dict[str, Whole] = {}

    def require(self, found: tensors.Specs, codec: UpdateCodec) -> None:
        """Raise `UpdateError` unless these are the tensors that the codec makes of the model."""
        # The same object, not an equal one: `known` gave it.
        if found is self._specs.get(codec.name):  # its header was compared byte by byte
            return
        expected = [tensor for parameter in self.parameters for tensor in codec.parameters.layout(parameter)]
        require_layout(found, expected)
        if len(self._specs) == _KEPT:  # a device chooses its codec's name
            self._specs.clear()
            self.known.clear()
        behind, specs = tensors.known_header((tensor.name, tensor.dtype, tensor.shape) for tensor in expected)
        self.known[behind] = self._specs[codec.name] = specs

    def whole(self, codec: str) -> Whole:
        """Return what decodes all parameters at once."""
        found = self._wholes.get(codec)
        if found is None:
            if len(self._wholes) == _KEPT:
                self._wholes.clear()
            found = codec_named(codec).parameters.whole([parameter.size for parameter in self.parameters])
            self._wholes[codec] = found
        return found


_KEPT = 8
_form = lru_cache(maxsize=_KEPT)(UpdateForm)


def _read_header(stream: BinaryIO, file_bytes: int, form: UpdateForm) -> tensors.Header:
    try:
        return tensors.read_header(
            stream, file_bytes=file_bytes, name="update", max_header_bytes=form.max_header_bytes, known=form.known
        )
    except TruncatedFileError as error:
        raise UpdateError("truncated", str(error)) from error
    except TensorFileError as error:
        raise UpdateError("corrupt_header", str(error)) from error


def require_layout(found: Sequence[TensorSpec], expected: Sequence[StoredTensor]) -> None:
    """Raise `UpdateError` unless a file's tensors are these, in this order."""
    if [tensor.name for tensor in found] != [tensor.name for tensor in expected]:
        odd = sorted({t.name for t in found} ^ {t.name for t in expected})[:3]
        what = f"for example {odd!r}" if odd else "the order differs"
        raise UpdateError("wrong_parameters", f"the tensors are not those of the model ({what})")
    for tensor, wanted in zip(found, expected, strict=True):
        if tensor.dtype != wanted.dtype:
            raise UpdateError("wrong_dtype", f"{tensor.name!r} is {tensor.dtype}, expected {wanted.dtype}")
        if tensor.shape != wanted.shape:
            raise UpdateError("wrong_shape", f"{tensor.name!r} is {list(tensor.shape)}, expected {list(wanted.shape)}")
