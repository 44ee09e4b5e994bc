"""A text file's lines: unpacked, decoded, and no further than it was long when it was opened."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedgrass.errors import DataError

_CHUNK = 1 << 20
_BOMS = (  # UTF-32 before UTF-16, whose mark begins alike
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER = (
    (b"PK\x03\x04", "a zip archive or an Excel file; unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file; save the sheet as CSV"),
    (b"SQLite format 3\x00", "an SQLite database; set loader to sqlite"),
    (b"PAR1", "a Parquet file; set loader to parquet"),
    (b"\x93NUMPY", "a NumPy array; set loader to npy and path to its folder"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard; unpack it"),
    (b"BZh", "packed with bzip2; unpack it"),
    (b"\xfd7zXZ", "packed with xz; unpack it"),
    (b"%PDF", "a PDF"),
)


def open_text(path: Path, encoding: str, *, max_bytes: int) -> tuple[io.TextIOWrapper, str]:
    """Open a text file, or one packed with gzip; returns it and the encoding's name.

    What is written to the file from now on is not read. Without an encoding, it is told from the byte order mark, or
    from zeros
    in UTF-16; else it is UTF-8 if the whole file is, and Windows' Latin-1 if not.

    Parameters
    ----------
    path
        The file.
    encoding
        Its encoding; empty to find out.
    max_bytes
        Bytes above which a packed file is refused, unpacked.

    Returns
    -------
    tuple
        The open file, and the encoding's name.

    Raises
    ------
    DataError
        If it is not text, or unpacks to more than ``max_bytes``.
    OSError
        If it cannot be read.
    """
    # Taken before anything is read: what an application appends from now on waits for the next time.
    size = path.stat().st_size
    if not path.is_file():
        raise DataError(f"data {path}: is not a file")
    with path.open("rb") as file:
        head = file.read(16)
    # Said by name: "no CSV" would leave the owner guessing.
    for magic, what in _OTHER:
        if head.startswith(magic):
            raise DataError(f"data {path}: is {what}")
    packed = head.startswith(b"\x1f\x8b")
    try:
        found = encoding or _encoding(path, packed, size, max_bytes)
        codecs.lookup(found)
    except LookupError as error:
        raise DataError(f"data {path}: there is no encoding {encoding!r}; utf-8, utf-16, latin-1 are some") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data {path}: is not a complete gzip file ({error})") from error
    most = max_bytes if packed else size
    raw = io.BufferedReader(_UpTo(path, _unpacked(path, packed), most, refuses_more=packed), _CHUNK)
    # A byte that is not a character makes one row bad, not all; half a character of UTF-16 does not stay alone.
    errors = "strict" if encoding or found.startswith("utf-16") or found == "utf-32" else "replace"
    return io.TextIOWrapper(raw, encoding=found, errors=errors, newline=""), found


@contextmanager
def told_as_data(what: str, kind: str = "text") -> Iterator[None]:
    """Raise `DataError` for what reading an opened text file, or opening it, may raise.

    Parameters
    ----------
    what
        The file, as messages name it.
    kind
        What it was expected to be.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{what}: cannot be read ({error.strerror or error})") from error
    except (UnicodeError, EOFError) as error:
        raise DataError(f"{what}: is no {kind} in UTF-8, nor in another encoding that shows ({error})") from error


def _unpacked(path: Path, packed: bool) -> IO[bytes]:
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def _encoding(path: Path, packed: bool, size: int, max_bytes: int) -> str:
    with _unpacked(path, packed) as file:
        chunk = file.read(_CHUNK)
        for mark, name in _BOMS:
            if chunk.startswith(mark):
                return name
        if guessed := _wide(chunk):
            return guessed
        decoder, seen = codecs.getincrementaldecoder("utf-8")("replace"), 0
        right = wrong = 0
        while chunk and (packed or seen < size):
            seen += len(chunk)
            if packed and seen > max_bytes:
                raise _too_large(path, max_bytes)
            # Most data are ASCII, which is the same in both encodings and needs no decoding.
            if not chunk.isascii() or decoder.getstate()[0]:
                text = decoder.decode(chunk)
                wrong += (found := text.count("\ufffd"))
                right += len(text) - len(text.encode("ascii", "ignore")) - found
            chunk = file.read(_CHUNK)
    # Latin-1 text is nearly never valid UTF-8: its letters above 127 stand alone. A few broken ones do not decide.
    return "utf-8" if right >= wrong else "cp1252"


def _wide(chunk: bytes) -> str:
    """Tell UTF-16 without a mark by its zeros: in ASCII text every second byte is one."""
    # A whole number of pairs.
    sample = chunk[: len(chunk) // 2 * 2][:4096]
    if len(sample) < 4:
        return ""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if odd > 0.7 * half and even < 0.1 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * half and odd < 0.1 * half else ""


def _too_large(path: Path, max_bytes: int) -> DataError:
    return DataError(f"data {path}: unpacks to more than {max_bytes} bytes (maxBytes)")


class _UpTo(io.RawIOBase):
    """The first bytes of a file: what is appended while it is read stays out, or is refused."""

    def __init__(self, path: Path, file: IO[bytes], most: int, *, refuses_more: bool) -> None:
        self._path = path
        self._file = file
        self._most = self._left = most
        self._refuses_more = refuses_more

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        content = self._file.read(min(len(view), self._left))
        view[: len(content)] = content
        self._left -= len(content)
        # A packed file does not say how long it is: one that goes on must not pass for its beginning.
        if self._refuses_more and not self._left and self._file.read(1):
            raise _too_large(self._path, self._most)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
