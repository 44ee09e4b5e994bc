"""Builders that come with the model: found by the digests that a device's own settings trust, and imported from nowhere else."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedgrass.builder_archive import builder_sha256, unpack_builder
from fedgrass.bundle import BUILDER, Bundle
from fedgrass.errors import EngineError

_packages: list[str] = []
_imported_from: dict[Path, set[str]] = {}


def own_builder(bundle: Bundle, trusted: Mapping[str, str], builder: str, folder: Path) -> str:
    """Return what builds a model here, and have its modules importable: those that the bundle brings, if they are trusted.

    Parameters
    ----------
    bundle
        The model.
    trusted
        ``module:object`` by the SHA-256 of the code that it is in: the setting ``builders``.
    builder
        ``module:object`` that is installed here, for a model that brings no code, or none that is trusted.
    folder
        Where code is unpacked, by digest.

    Returns
    -------
    str
        ``module:object``; empty if there is none.

    Raises
    ------
    EngineError
        If the model brings code that is not trusted, and there is nothing else.
    BundleError
        If the code is not what its digest says.
    """
    found = builder_sha256(bundle)
    if found not in trusted:
        import_from(None)
        if found and not builder:
            raise EngineError(
                f"model {bundle.manifest.version} brings its builder, code with the digest {found}, which this device does not "
                f'trust; to have it run, deploy builders: {{"{found}": "module:object"}} in the configuration of '
                "com.fedgrass.Runtime"
            )
        return builder
    import_from(unpack_builder(bundle.path(BUILDER), found, folder / found))
    return trusted[found]


@contextmanager
def unpacked(archive: bytes, place: Path) -> Iterator[None]:
    """Have an archive's modules importable meanwhile, to be tried; ``place`` is a folder for its files."""
    (place / BUILDER).write_bytes(archive)
    sha256 = hashlib.sha256(archive).hexdigest()
    import_from(unpack_builder(place / BUILDER, sha256, place / sha256))
    try:
        yield
    finally:
        import_from(None)


def import_from(folder: Path | None) -> None:
    """Have modules imported from a folder first; those of the one before it are forgotten, so that none of them is left."""
    if list(_imported_from) == ([] if folder is None else [folder]):
        return
    while _imported_from:
        before, names = _imported_from.popitem()
        sys.path[:] = [entry for entry in sys.path if entry != str(before)]
        _forget(names)
    importlib.invalidate_caches()
    if folder is not None:
        _imported_from[folder] = _names_of(folder)
        _forget(_imported_from[folder])
        sys.path.insert(0, str(folder))


def have_packages(folders: Sequence[str]) -> None:
    """Have a device's own packages importable after the runtime's, as its setting ``packages`` says; replaces what was before.

    Parameters
    ----------
    folders
        Folders that hold packages, such as a ``dist-packages``.

    Raises
    ------
    EngineError
        If one is not there.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise EngineError(f"packages: {folder}: there is no such folder on this device")
    if _packages == list(folders):
        return
    sys.path[:] = [entry for entry in sys.path if entry not in _packages]
    # Last, so that none takes the place of a package that the runtime pins.
    _packages[:] = [folder for folder in folders if folder not in sys.path]
    sys.path.extend(_packages)
    importlib.invalidate_caches()


def _names_of(folder: Path) -> set[str]:
    """Return the top-level modules that a folder may hold. Python's own, and ours, are never a builder's."""
    found = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    return found - sys.stdlib_module_names - {"components", "fedgrass"}


def _forget(modules: set[str]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
