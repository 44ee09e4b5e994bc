"""Safetensors files, read defensively and written reproducibly.

Ours rather than the ``safetensors`` package for two reasons (docs/decisions/0001): that one writes metadata in a
random order, so the same tensors give other bytes each time, and it reads a file whole, where the aggregator streams.
Tests hold both against each other.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.bounds import MAX_HEADER_BYTES, MAX_TENSORS
from fedgrass.errors import TensorFileError, TruncatedFileError
from fedgrass.files import replacing

Array = NDArray[Any]

# More than any layer's kernel has.
MAX_DIMENSIONS = 8

_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file: ``begin`` and ``end`` are byte offsets into the data that follow the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds. ``tensors`` are in the order of their bytes."""

    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    data_offset: int
    file_bytes: int


def read_header(
    stream: BinaryIO,
    *,
    file_bytes: int,
    name: str = "file",
    max_header_bytes: int = MAX_HEADER_BYTES,
    known: Known = MappingProxyType({}),
) -> Header:
    """Read and check the header at the start of ``stream``; leaves the stream at the first tensor byte.

    Parameters
    ----------
    stream
        Positioned at the start of the file.
    file_bytes
        The whole file's size, known from storage. Nothing larger than the bounds above is read or allocated, and
        the tensors must fill the rest of the file exactly, without holes or overlaps.
    name
        What to call the file in errors.
    max_header_bytes
        Bound on the header, for callers who know what it must hold.
    known
        Headers that are expected (`known_header`): their bytes are compared before anything is parsed. What a file is taken
        for does not depend on it.

    Raises
    ------
    TruncatedFileError
        If the file ends before what the header promises.
    TensorFileError
        If anything else about the header is not as the format says.
    """
    prefix = _read_exactly(stream, 8, name)
    (length,) = struct.unpack("<Q", prefix)
    if length > max_header_bytes:
        raise TensorFileError(f"{name}: the header claims {length} bytes; at most {max_header_bytes} are accepted")
    # Before anything is allocated: the length is eight bytes of a stranger's.
    if length > file_bytes - 8:
        raise TruncatedFileError(f"{name}: the header claims {length} bytes, the whole file has {file_bytes}")
    metadata, tensors = _parse(_read_exactly(stream, length, name), known, name)
    position = tensors[-1].end if tensors else 0
    # What lay behind the last tensor nobody would check, and two files with one content would have two digests.
    if 8 + length + position != file_bytes:
        kind = TruncatedFileError if 8 + length + position > file_bytes else TensorFileError
        raise kind(f"{name}: header and tensors make {8 + length + position} bytes, the file has {file_bytes}")
    return Header(tensors, metadata, 8 + length, file_bytes)


def load(path: Path, *, max_bytes: int = 4 << 30) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a whole file into memory: tensors by name in file order, and the metadata.

    Raises
    ------
    TensorFileError
        If the file is missing, larger than ``max_bytes``, or malformed.
    """
    with opened(path, max_bytes) as (stream, file_bytes):
        header = read_header(stream, file_bytes=file_bytes, name=str(path))
        tensors = {}
        for spec in header.tensors:
            array = np.empty(spec.shape, spec.dtype)
            read_into(stream, array, name=f"{path}: tensor {spec.name!r}")
            tensors[spec.name] = array
    return tensors, dict(header.metadata)


@contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of bounded size; gives it and its bytes, or raises `TensorFileError`."""
    try:
        file_bytes = path.stat().st_size
        if file_bytes > max_bytes:
            raise TensorFileError(f"{path}: {file_bytes} bytes; at most {max_bytes} are accepted")
        stream = path.open("rb")
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read ({error.strerror})") from error
    with stream:
        yield stream, file_bytes


class Readable(Protocol):
    """What is read from, where it is not a file."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill the buffer from its start and return how many bytes came; 0 at the end."""
        ...


def read_into(stream: BinaryIO | Readable, array: Array, *, name: str) -> None:
    """Fill an array from a stream.

    Parameters
    ----------
    stream
        Opened for reading, binary.
    array
        C-contiguous, any shape and dtype; overwritten.
    name
        What the stream is called in an error.

    Raises
    ------
    TruncatedFileError
        If the stream ends before the array is full.
    """
    view = array.reshape(-1).view(np.uint8).data
    # A stream may give less than was asked for, as sockets do.
    while view:
        count = stream.readinto(view)  # type: ignore[union-attr]
        if not count:
            raise TruncatedFileError(f"{name}: truncated, {len(view)} bytes are missing")
        view = view[count:]


def encode_header(tensors: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length prefix and header for tensors whose bytes follow in this order; the same input gives the same bytes."""
    members = _members(tuple(tensors))
    if metadata:
        first = f'"__metadata__":{_COMPACT.encode(dict(sorted(metadata.items())))}'
        members = f"{first},{members}" if members else first
    text = f"{{{members}}}".encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned, as the format asks
    return struct.pack("<Q", len(text)) + text


@lru_cache(maxsize=4)
def _members(tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> str:
    """Return what a header says of the tensors, without its braces: the same for all updates of a model."""
    header: dict[str, Any] = {}
    position = 0
    for name, dtype, shape in tensors:
        if dtype not in _NAMES:
            raise TensorFileError(f"tensor {name!r}: dtype {dtype} cannot be stored; use one of {', '.join(_DTYPES)}")
        end = position + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return _COMPACT.encode(header)[1:-1]


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """Return a file's bytes in pieces, the arrays' own memory among them where it lies as the file has it."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    specs = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    return [encode_header(specs, metadata or {}), *(_bytes(array) for array in arrays.values())]


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file durably: under another name, flushed, then renamed.

    The same tensors in the same order with the same metadata give the same bytes.

    Parameters
    ----------
    path
        File to write, whole or not at all; its folder exists.
    tensors
        Arrays by name, in the order in which they are stored.
    metadata
        Text by name, kept in the header.

    Returns
    -------
    str
        SHA-256 of the file, in hex.

    Raises
    ------
    TensorFileError
        If an array's dtype cannot be stored.
    OSError
        If the disk is full or takes no files.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> digest = save(Path("w.safetensors"), {"w": np.zeros((2, 3), np.float32)}, {"round": "7"})
    >>> tensors, metadata = load(Path("w.safetensors"))
    >>> tensors["w"].shape, metadata
    ((2, 3), {'round': '7'})
    """
    digest = hashlib.sha256()
    with replacing(path) as stream:
        for block in encode(tensors, metadata):
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


Specs = tuple[TensorSpec, ...]
Known = Mapping[bytes, Specs]
"""What a header holds behind its metadata, byte by byte, and the tensors that it describes so (`known_header`)."""

_METADATA = b'{"__metadata__":'
_BEHIND_METADATA = b'"},"'


def known_header(tensors: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> tuple[bytes, Specs]:
    """Return an entry for `read_header`'s ``known``: headers that describe these tensors as we write them."""
    members = f"{{{_members(tuple(tensors))}}}"
    return b"," + members[1:].encode(), _specs(_HEADERS.decode(members), "header")


def _parse(text: bytes, known: Known, name: str) -> tuple[dict[str, str], Specs]:
    try:
        header, specs = _decode_known(text, known)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{name}: the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise TensorFileError(f"{name}: the header is a {type(header).__name__}, expected an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise TensorFileError(f"{name}: __metadata__ must map strings to strings")
    return metadata, _specs(header, name) if specs is None else specs


def _decode_known(text: bytes, known: Known) -> tuple[Any, Specs | None]:
    """Decode the JSON; of a known header the metadata alone. A header means the same either way."""
    end = text.find(_BEHIND_METADATA, len(_METADATA)) + 2
    # A fleet's updates differ in their metadata alone: to decode the same tensors' entries for each costs more than the sums.
    for behind, specs in known.items() if text.startswith(_METADATA) else ():
        if text.startswith(behind, end) and not text[end + len(behind) :].strip(b" "):
            with suppress(ValueError, RecursionError):
                found = text[len(_METADATA) : end].decode()
                metadata, stop = _HEADERS.raw_decode(found)
                if stop == len(found):
                    return {"__metadata__": metadata}, specs
    return _HEADERS.decode(text.decode()), None


def _specs(header: dict[str, Any], name: str) -> Specs:
    # Each entry becomes Python objects many times its size in the file.
    if len(header) > MAX_TENSORS:
        raise TensorFileError(f"{name}: {len(header)} tensors; at most {MAX_TENSORS} are accepted")
    specs = tuple(sorted((_spec(key, entry, name) for key, entry in header.items()), key=lambda t: (t.begin, t.end)))
    position = 0
    # In the order of their bytes; sorted, holes and overlaps both show as a wrong beginning.
    for tensor in specs:
        if tensor.begin != position:
            raise TensorFileError(
                f"{name}: tensor {tensor.name!r} begins at {tensor.begin}, expected {position} (holes and overlaps are refused)"
            )
        position = tensor.end
    return specs


def _spec(key: str, entry: Any, name: str) -> TensorSpec:
    where = f"{name}: tensor {key[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"{where}: expected dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise TensorFileError(f"{where}: dtype {str(entry['dtype'])[:20]!r} is not one of {', '.join(_DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise TensorFileError(f"{where}: shape must be at most {MAX_DIMENSIONS} whole numbers")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise TensorFileError(f"{where}: data_offsets must be two whole numbers")
    begin, end = offsets
    if end - begin != dtype.itemsize * math.prod(shape):
        raise TensorFileError(f"{where}: {end - begin} bytes do not hold shape {shape} of {entry['dtype']}")
    return TensorSpec(key, dtype, tuple(shape), begin, end)


def _is_sizes(value: Any) -> bool:
    # `type(...) is int`, because True is an int to isinstance. Below 2^48 no product of sizes gets out of hand.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


_HEADERS = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _read_exactly(stream: BinaryIO, count: int, name: str) -> bytes:
    parts = []
    while count > 0:
        block = stream.read(count)
        if not block:
            raise TruncatedFileError(f"{name}: truncated, {count} bytes of the header are missing")
        parts.append(block)
        count -= len(block)
    return b"".join(parts)
