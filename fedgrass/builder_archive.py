"""The operator's own code that travels with a model: packed into its bundle as ``builder.zip``, unpacked where it trains.

The same code gives the same bytes, so its SHA-256 names it. Whoever unpacks it has that digest from elsewhere: from settings of
its own, never from the bundle (`fedgrass.engines.shipped`). What is unpacked is bounded, and lies below its folder.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedgrass.bundle import BUILDER, Bundle
from fedgrass.errors import BundleError, ConfigurationError
from fedgrass.files import flush_directory, sha256_of, write_atomically

MAX_FILES = 4096
MAX_BYTES = 64 << 20
"""Of all files, and of the archive."""

# The earliest time that a ZIP entry can have: real ones would make the digest depend on the checkout.
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_NOT_CODE = frozenset({"__pycache__", "greengrass-build", "node_modules", "venv"})
_OURS = frozenset({"components", "fedgrass"})
# Bytes that an archive's own structure may add to its files'.
_HEADERS = 1 << 20


def pack_builder(source: Path) -> bytes:
    """Return code as an archive, whose bytes depend on nothing but the files' names and contents.

    Parameters
    ----------
    source
        A folder that holds modules and packages, and what they read beside themselves; one ``.py``; or a wheel of plain Python.
        Hidden files, ``__pycache__`` and environments in a folder are left out.

    Returns
    -------
    bytes
        The archive; its SHA-256 names the code.

    Raises
    ------
    ConfigurationError
        If it holds no module, too much, a link, code for one kind of processor, or a module that would hide one of Python's own.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> source = Path(mkdtemp()) / "pump_model.py"
    >>> _ = source.write_text("def build(): ...")
    >>> pack_builder(source) == pack_builder(source.parent)
    True
    """
    # Sorted by name, so that the file system's order does not show in the digest.
    content = dict(sorted(_files_of(source)))
    if not any(name.endswith(".py") for name in content):
        raise ConfigurationError(f"{source}: holds no .py; expected the folder that modules are imported from")
    # The folder comes first on the import path: a `random.py` in it would replace Python's for everybody.
    hidden = sorted({_module(name) for name in content} & (sys.stdlib_module_names | _OURS))
    if hidden:
        raise ConfigurationError(
            f"{source}: its module {hidden[0]!r} would hide the one of that name that others import; rename it"
        )
    packed = io.BytesIO()
    # Stored: deflate's output differs between versions of zlib, and so would the digest.
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _EARLIEST)
            # The same mode for all: the user's umask must not show in the digest.
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    return packed.getvalue()


def add_builder(bundle: Bundle, archive: bytes) -> Bundle:
    """Put an archive of `pack_builder` into a bundle, in place of what it has; returns the bundle, sealed again.

    A fleet never replaces a version: a bundle that was published goes out under another (``fedgrass model publish --version``).
    """
    write_atomically(bundle.path(BUILDER), archive)
    return Bundle.seal(bundle.folder, bundle.manifest)


def builder_sha256(bundle: Bundle) -> str:
    """Return the digest of the code that a bundle brings; empty if it brings none."""
    file = bundle.manifest.files.get(BUILDER)
    return file.sha256 if file is not None else ""


def unpack_builder(archive: Path, sha256: str, folder: Path) -> Path:
    """Unpack an archive of known digest; what lies in ``folder`` already is compared, and replaced if it differs.

    Parameters
    ----------
    archive
        The file, untrusted.
    sha256
        What it must be, from whoever trusts it.
    folder
        Where it goes; whole or absent.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    BundleError
        If it is another file, not such an archive, or too large.
    """
    try:
        # The size first: a digest of gigabytes would be computed for nothing.
        if archive.stat().st_size > MAX_BYTES + _HEADERS or sha256_of(archive) != sha256:
            raise BundleError(f"{archive}: differs from its digest {sha256[:12]}…. Fetch the bundle again")
        content = dict(_entries(archive))
        # Compared byte by byte each time: what lies there could have been changed, and is imported next.
        if not _holds(folder, content):
            _write(folder, content)
    except OSError as error:
        raise BundleError(f"{error.filename or archive}: {error.strerror}") from error
    return folder


def _files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        yield from _bounded(source, _in_folder(source))
    elif source.suffix == ".py" and source.is_file():
        yield from _bounded(source, iter([(source.name, source)]))
    elif source.suffix == ".whl" and source.is_file():
        if not source.name.endswith("-none-any.whl"):
            raise ConfigurationError(
                f"{source}: a wheel for one kind of processor; expected one of plain Python (none-any)"
            )
        try:
            yield from _entries(source)
        except BundleError as error:
            raise ConfigurationError(str(error)) from error
    else:
        raise ConfigurationError(f"{source}: expected a folder, a .py file or a wheel (.whl)")


def _in_folder(source: Path) -> Iterator[tuple[str, Path]]:
    for root, folders, names in os.walk(source):
        # In place, which is how os.walk is told not to go into them.
        folders[:] = sorted(name for name in folders if not _left_out(Path(root) / name))
        for path in (Path(root) / name for name in (*names, *folders)):
            # A link would pack what lies outside, or not resolve on the device.
            if path.is_symlink():
                raise ConfigurationError(f"{path}: is a link; put the file itself there")
            if path.is_file() and not path.name.startswith(".") and path.suffix not in (".pyc", ".pyo"):
                yield path.relative_to(source).as_posix(), path


def _left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _NOT_CODE or (folder / "pyvenv.cfg").exists()


def _bounded(source: Path, files: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, bytes]]:
    left = MAX_BYTES
    for number, (name, path) in enumerate(files, start=1):
        size = path.stat().st_size
        left -= size
        if number > MAX_FILES or left < 0:
            raise ConfigurationError(
                f"{source}: more than {MAX_FILES} files or {MAX_BYTES >> 20} MB (at {name}, {size:,} bytes); leave data and "
                "results elsewhere"
            )
        yield name, path.read_bytes()


def _module(name: str) -> str:
    """Return the top-level module that a file is, or is part of; a folder without modules is none, and not asked about."""
    first, _, rest = name.partition("/")
    return first if rest and name.endswith(".py") else first.removesuffix(".py")


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read an archive that nobody vouches for.

    Raises
    ------
    BundleError
        Naming the entry that is not as it should be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            # By the archive's own list, before anything is unpacked; `_content` holds each entry to it.
            if len(files) > MAX_FILES or sum(entry.file_size for entry in files) > MAX_BYTES:
                raise BundleError(f"{path}: more than {MAX_FILES} files or {MAX_BYTES >> 20} MB")
            # Readers differ in which of two entries of a name they take.
            if len({entry.filename for entry in files}) != len(files):
                raise BundleError(f"{path}: names a file twice")
            for entry in files:
                yield _plain(path, entry), _content(path, archive, entry)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BundleError(f"{path}: is not an archive that can be read ({error})") from error


def _plain(path: Path, entry: zipfile.ZipInfo) -> str:
    """Return an entry's name; raises `BundleError` if it could lie elsewhere than below the folder, or is not a plain file."""
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    parts = PurePosixPath(name).parts
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{path}: {name!r} is neither stored nor deflated")
    # Written the one plain way: what PurePosixPath would tidy up could be read otherwise elsewhere.
    odd = not parts or "/".join(parts) != name or any(part == ".." for part in parts) or name.startswith("/")
    if odd or any(sign in name for sign in "\\:\0") or kind not in (0, stat.S_IFREG):
        raise BundleError(f"{path}: {name!r} is not a plain file below the archive's own folder")
    return name


def _content(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as stream:
        # One byte more than is announced shows an entry that unpacks to more, without reading all of it.
        content = stream.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise BundleError(f"{path}: {entry.filename!r} has another size than it says")
    return content


def _holds(folder: Path, content: dict[str, bytes]) -> bool:
    if not folder.is_dir():
        return False
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found.keys() == content.keys() and all(found[name].read_bytes() == data for name, data in content.items())


def _write(folder: Path, content: dict[str, bytes]) -> None:
    # With the process id: two processes may unpack the same code at once.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, data in content.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        flush_directory(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
