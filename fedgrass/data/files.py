"""Files in a device's folder, without what systems and cameras leave there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedgrass.errors import DataError

_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not one of the user's: ``._photo.jpg``, ``.DS_Store``, ``__MACOSX``."""
    return name.startswith(".") or name.lower() in _HIDDEN


def below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in those within it, by name; links are followed, but not in circles.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"data {error.filename}: cannot be read ({error.strerror})") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        found = Path(place).stat()
        # A link to a folder above itself would be walked for ever.
        known = (found.st_dev, found.st_ino)
        if known in seen:
            folders.clear()
            continue
        seen.add(known)
        # In place: os.walk goes on with what is left in the list.
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(place, name) for name in sorted(files) if not is_hidden(name))


def in_folder(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files with these suffixes, whatever their case, the newest last.

    Raises
    ------
    DataError
        If there are none, or the folder cannot be read.
    """
    files = [file for file in below(folder) if file.name.lower().endswith(tuple(suffixes)) and not _is_empty(file)]
    if not files:
        raise DataError(f"data {folder}: no files {', '.join(suffixes)} in it")
    # By name where times are equal, so that the order is the same at each start.
    return [file for _, file in sorted((_changed(file), file) for file in files)]


def _is_empty(file: Path) -> bool:
    """Whether a file has nothing in it yet, as one that a rotation has just made."""
    try:
        return file.stat().st_size == 0
    except OSError:
        return False


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0  # reading it says what is wrong
