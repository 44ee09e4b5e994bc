"""Examples from a folder of files, one folder for each class; a file is read when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.data.account import Account
from fedgrass.data.arrays import Indices
from fedgrass.data.files import below, is_hidden
from fedgrass.data.labels import Labels, takes_x_alone
from fedgrass.data.loaders.described import described_loaders
from fedgrass.data_settings import DataSettings
from fedgrass.engines.base import Batch
from fedgrass.errors import DataError
from fedgrass.tensors import Array


class Reader(Protocol):
    """What makes x of one kind of files."""

    @property
    def unit(self) -> str:
        """What messages call several of them, such as ``images``."""
        ...

    @property
    def suffixes(self) -> Sequence[str]:
        """How their names end, in small letters."""
        ...

    @property
    def unread(self) -> Sequence[str]:
        """Endings of files of the kind that are not read: they are counted as bad, and not overlooked."""
        ...

    def read(self, file: Path) -> Array:
        """Return one example's x; raises `DataError`, with the file's name, if it is not such a file."""
        ...


class ClassFolder:
    """``<folder>/<class>/…/<file>`` as examples: x as the reader makes it, y the class of the outermost folder.

    Folders are classes by `Labels`' one rule. For a model whose y is x, all files in the folder are examples.

    Raises
    ------
    DataError
        If the model takes several inputs, or no classes, or the folder is not as described.
    """

    def __init__(self, folder: Path, manifest: Manifest, settings: DataSettings, reader: Reader) -> None:
        self._what = f"data {folder}"
        self._manifest = manifest
        self._reader = reader
        # All that can be known without a file is checked first: a wrong setting is told at once, not after a walk
        # through a folder.
        self._labels = Labels(manifest)
        self._takes_x_alone = takes_x_alone(manifest)
        if not self._takes_x_alone and not self._labels.fits_one:
            raise DataError(
                f"{self._what}: model {manifest.name!r} takes y {list(manifest.y.shape)}; {reader.unit} need a class number for "
                "y, or one value for each class"
            )
        if not folder.is_dir():
            raise DataError(f"{self._what}: is not a folder; expected one folder of {reader.unit} for each class in it")
        self.account = Account(self._what, reader.unit, settings.max_bad_share)
        self._files = self._found(folder, settings)
        if not self._files:
            raise DataError(f"{self._what}: no {reader.unit} ({', '.join(reader.suffixes)}) in folders of classes")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Indices) -> Batch:
        """Decode these files; see `fedgrass.data.arrays.Source`."""
        chosen = [self._files[index] for index in indices]
        x = np.stack([self._reader.read(file) for file, _ in chosen])
        if self._takes_x_alone:
            return Batch(x, x.astype(self._manifest.y.dtype))
        return Batch(x, self._labels.y(np.array([[label] for _, label in chosen])))

    def verify(self) -> None:
        """Decode every file once, and leave out those that cannot be.

        Raises
        ------
        DataError
            If they are more than the settings allow.
        """
        self._files = [entry for entry in self._files if self._is_good(entry[0])]
        self.account.judge()

    def _found(self, folder: Path, settings: DataSettings) -> list[tuple[Path, int]]:
        if self._takes_x_alone:
            files = [(file, 0) for file in below(folder)]
        else:
            files = [(file, index) for name, index in self._classes(folder) for file in below(folder / name)]
        # Formats that are not read are kept here, and counted as bad later: silently left out, a class could be
        # empty.
        endings = (*self._reader.suffixes, *self._reader.unread)
        chosen = [(file, index) for file, index in files if file.suffix.lower() in endings]
        if len(chosen) < len(files):
            self.account.says(f"{len(files) - len(chosen)} files left out that are not {self._reader.unit}")
        return _newest(chosen, settings)

    def _classes(self, folder: Path) -> list[tuple[str, int]]:
        try:
            names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        except OSError as error:
            raise DataError(f"{self._what}: cannot be read ({error.strerror})") from error
        return [(name, self._class_of(name)) for name in names]

    def _class_of(self, name: str) -> int:
        try:
            return self._labels.of_text(name)
        except DataError as error:
            raise DataError(f"{self._what}: folder {name!r}: {error}") from error
        except ValueError as error:
            known = ", ".join(self._labels.names[:10])
            raise DataError(f"{self._what}: folder {name!r} is none of the model's classes {known}") from error

    def _is_good(self, file: Path) -> bool:
        try:
            self._reader.read(file)
        except DataError as error:
            self.account.leaves_out(str(error))
            return False
        self.account.good += 1
        return True


def refuse_several(what: str, manifest: Manifest, example: str) -> None:
    """Refuse a model of several inputs or outputs: a file and its folder are one of each.

    Parameters
    ----------
    what
        Begins the message.
    manifest
        The model's.
    example
        What one example is, such as ``an image``.

    Raises
    ------
    DataError
        If it has several.
    """
    if manifest.inputs or manifest.outputs:
        by_name = [name for name, loader in described_loaders().items() if loader.several]
        raise DataError(
            f"{what}: model {manifest.name!r} has several inputs or outputs, {example} and its folder are one of each; "
            f"give arrays by their names (loader {' or '.join(by_name)})"
        )


def _newest(files: list[tuple[Path, int]], settings: DataSettings) -> list[tuple[Path, int]]:
    """Return the files that the window holds, in their order."""
    if not settings.window_hours and not settings.window_rows:
        return files
    times = np.array([_changed(file) for file, _ in files])
    kept = (
        np.flatnonzero(times >= time.time() - 3600 * settings.window_hours)
        if settings.window_hours
        else np.arange(len(files))
    )
    if settings.window_rows:
        # Chosen by time, kept in the order of their names: the division into train and validation goes by place.
        kept = np.sort(kept[np.argsort(times[kept], kind="stable")[-settings.window_rows :]])
    return [files[index] for index in kept]


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0  # reading it says what is wrong
