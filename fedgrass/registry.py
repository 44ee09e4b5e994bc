"""Parts by name: those that a package of fedgrass holds, one a module, and those that installed packages register.

A built-in part is a module of the package that assigns the part to the kind's name, as in ``strategy = FedAvg``. Such modules are
found by their text: they are listed without being imported, and adding one adds one file. Other packages register theirs as entry
points of a group; a built-in name is never theirs. An unknown name is an error that lists the names there are.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import fedgrass
from fedgrass.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The parts of one kind.

    Parameters
    ----------
    kind
        What messages call one of them, such as ``strategy``; also the attribute of a built-in part's module.
    package
        The package with the built-in parts: its modules that assign the kind's name at the beginning of a line.
    group
        The group of entry points of other packages' parts.
    valid
        Whether an object is such a part.
    expected
        What a part must be, for messages.
    also
        How else one can be named, for messages, such as ``module:Class``.
    """

    kind: str
    package: str
    group: str
    valid: Callable[[object], bool]
    expected: str
    also: str = ""

    def built_in(self) -> tuple[str, ...]:
        """Return the names of the package's own parts, in order; nothing is imported, not even the package itself."""
        return _assigning(self.package, self.kind)

    def installed(self) -> tuple[str, ...]:
        """Return the names that other packages register, in order, without those that are built in."""
        return tuple(
            sorted({one.name for one in self._entry_points() if _NAME.fullmatch(one.name)} - {*self.built_in()})
        )

    def names(self) -> tuple[str, ...]:
        """Return all names: the built-in ones, then those of other packages."""
        return (*self.built_in(), *self.installed())

    def choices(self) -> str:
        """Return all names as a message or a help text lists them."""
        return ", ".join(self.names()) + (f", or {self.also}" if self.also else "")

    def __contains__(self, name: object) -> bool:
        return name in self.built_in() or name in self.installed()

    def get(self, name: str) -> T:
        """Return a part; its module is imported now.

        Raises
        ------
        ConfigurationError
            If there is none of that name, two packages register it, it cannot be imported, or it is not a part of that kind.
        """
        # Built-in names first: an installed package must not take the place of one of ours.
        if name in self.built_in():
            return cast(T, getattr(importlib.import_module(f"{self.package}.{name}"), self.kind))
        # By value: one package found twice on the path does not conflict.
        found = {one.value: one for one in self._entry_points() if one.name == name and _NAME.fullmatch(name)}
        if not found:
            raise ConfigurationError(f"{self.kind} {name[:200]!r}: expected one of {self.choices()}")
        if len(found) > 1:
            raise ConfigurationError(
                f"{self.kind} {name!r}: registered as {' and as '.join(sorted(found))}; uninstall one of these packages"
            )
        (one,) = found.values()
        try:
            part = one.load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"{self.kind} {name!r}: registered as {one.value}, which cannot be imported ({error})"
            ) from error
        if not self.valid(part):
            raise ConfigurationError(f"{self.kind} {name!r}: registered as {one.value}, which is not a {self.expected}")
        return cast(T, part)

    def _entry_points(self) -> Collection[EntryPoint]:
        return registered(self.group)


def registered(group: str) -> Collection[EntryPoint]:
    """Return a group's entry points; those of all installed packages are read once for each group."""
    return _registered(group, tuple(sys.path))


# Read once: reading takes 30 ms where many packages are installed, and names that devices send are looked up too.
@lru_cache(maxsize=32)
def _registered(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    # Imported here: it brings mail and zip archives with it, and built-in names are found without it.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=group))


@cache
def _assigning(package: str, kind: str) -> tuple[str, ...]:
    """Return the names of a package's modules that assign ``kind``, in order; nothing is imported."""
    below = package.partition(".")[2].split(".")
    assigns = re.compile(rf"^{kind} = ", re.MULTILINE)
    # Every folder of the package's path: it may have several.
    files = [path for folder in fedgrass.__path__ for path in Path(folder, *below).glob("*.py")]
    return tuple(sorted({path.stem for path in files if assigns.search(path.read_text(encoding="utf-8"))}))
