"""Files that travel inside a LiteRT model, such as its labels: a ZIP archive after it, as TensorFlow Lite's metadata has it.

The model itself says what each file is (`fedgrass.authoring.metadata`). ``unzip -p inference.tflite labels.txt`` reads one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from fedgrass.errors import BundleError

MAX_BYTES = 16 << 20
"""Of all files together, unpacked."""


def files_of(content: bytes) -> dict[str, bytes]:
    """Return the files that lie in a model, by name; none if it has none.

    Raises
    ------
    BundleError
        If the archive is damaged, or unpacks to more than `MAX_BYTES`.
    """
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return {}
    try:
        with zipfile.ZipFile(stream) as archive:
            # By the archive's directory, before anything is unpacked.
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise BundleError(f"inference model: its files unpack to more than {MAX_BYTES} bytes")
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BundleError(f"inference model: its files cannot be read ({error}); export the bundle again") from error


def with_files(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """Return a model with these files after it; the same files give the same bytes. ``content`` has none yet."""
    if not files:
        return content
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # of 1980, so that no clock is in it
    return stream.getvalue()
