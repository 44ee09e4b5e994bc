"""Files that are whole or absent: written under another name, flushed, and renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write what becomes ``path`` when the block ends, and nothing if it raises.

    A reader, or a power cut, sees the old file or the new one and nothing between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its target, since a rename is atomic within one file system only; named by process, so that two do not
    # share it.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            # Before the rename: after a power cut the name could otherwise lead to a file of zeros.
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Make ``path`` hold ``content``, whole or not at all."""
    with replacing(path) as stream:
        stream.write(content)


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file in blocks, so that ``path`` is whole or absent."""
    with source.open("rb") as reader, replacing(path) as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)


def flush_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder; what another thread deletes meanwhile counts as gone."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(root, name).stat().st_size
    return total


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
