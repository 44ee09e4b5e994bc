"""A loader and what is known of its files, so that nothing outside its module names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedgrass.bundle import Manifest
from fedgrass.data.arrays import Source
from fedgrass.data.files import below
from fedgrass.data_settings import DataSettings
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.parts import LOADERS
from fedgrass.tensors import Array

Read = Callable[[DataSettings, Manifest], tuple[Array, Array] | tuple[Array, Array, Array | None] | Source]
"""What a loader does: it returns x and y, perhaps with weights, or what can be read by example number."""

# Files by which a folder's kind is told.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class FileLoader:
    """A loader with facts. A plain function is a loader too: one of which nothing is known.

    Attributes
    ----------
    read
        The loader itself.
    suffixes
        How its files' names end, in small letters.
    contents
        How the names of files end that it reads from a folder of classes.
    marker
        Name of a file by which a folder of its is known.
    windowed
        Whether it honours ``windowRows`` and ``windowHours``.
    several
        Whether it has the arrays of several inputs and outputs, by their names.
    """

    read: Read
    suffixes: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    marker: str = ""
    windowed: bool = True
    several: bool = False

    def __call__(
        self, settings: DataSettings, manifest: Manifest
    ) -> tuple[Array, Array] | tuple[Array, Array, Array | None] | Source:
        """Read the examples; raises `DataError` for a window that the loader would not honour."""
        if not self.windowed and (settings.window_rows or settings.window_hours):
            raise DataError(f"data: the {settings.loader} loader has no window; remove windowRows and windowHours")
        return self.read(settings, manifest)


def described_loaders() -> dict[str, FileLoader]:
    """Return the loaders of which something is known, by name; their modules are imported now."""
    found = {}
    for name in LOADERS.names():
        try:
            part = LOADERS.get(name)
        except ConfigurationError:
            continue  # told to whoever names it
        if isinstance(part, FileLoader):
            found[name] = part
    return found


def loader_of(path: Path) -> str:
    """Return the name of the loader that reads a file or folder, by what it is called and has in it.

    Raises
    ------
    DataError
        If none is known to.
    """
    loaders = described_loaders()
    if path.is_dir():
        marked = (name for name, one in loaders.items() if one.marker and (path / one.marker).exists())
        return next(marked, "") or _by_contents(path, loaders)
    for name, one in loaders.items():
        if path.name.lower().endswith(one.suffixes):
            return name
    suffixes = ", ".join(suffix for one in loaders.values() for suffix in one.suffixes)
    markers = ", ".join(one.marker for one in loaders.values() if one.marker)
    raise DataError(
        f"data {path}: expected a file {suffixes}, a folder with {markers}, or one of class folders; or name the loader"
    )


def _by_contents(folder: Path, loaders: dict[str, FileLoader]) -> str:
    """Return the loader that reads most of the files in class folders; of images, if none reads any."""
    endings = Counter(file.suffix.lower() for file in islice(below(folder), _LOOKED_AT))
    reads = {name: sum(endings[suffix] for suffix in one.contents) for name, one in loaders.items() if one.contents}
    best = max(reads, key=lambda name: reads[name], default="images")
    return best if reads.get(best) else "images"
