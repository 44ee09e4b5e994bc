"""The tensors of a safetensors file, mapped from the disk."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fedgrass.tensors import Array, opened, read_header


class MappedTensors(Mapping[str, Array]):
    """A file's tensors, each mapped from the disk while somebody holds it: a large model takes no memory before it is looked at.

    Examples
    --------
    >>> import tempfile
    >>> from fedgrass.tensors import save
    >>> path = Path(tempfile.mkdtemp()) / "two.safetensors"
    >>> _ = save(path, {"w": np.arange(4, dtype=np.float32), "b": np.zeros(1, np.float32)})
    >>> mapped = MappedTensors(path)
    >>> list(mapped), float(mapped["w"].sum())
    (['w', 'b'], 6.0)

    Parameters
    ----------
    path
        A file that nobody writes into; it may be replaced by another of its name, as `save` does.
    max_bytes
        The largest file that is accepted, in bytes.
    prefix
        What the names in the file begin with; it is left out here, and tensors of other names with them.

    Raises
    ------
    TensorFileError
        If the file is missing, larger than ``max_bytes``, or malformed.
    """

    def __init__(self, path: Path, *, max_bytes: int = 4 << 30, prefix: str = "") -> None:
        with opened(path, max_bytes) as (stream, file_bytes):
            header = read_header(stream, file_bytes=file_bytes, name=str(path))
            # The descriptor, not the name: the file may be replaced while tensors of it are in use.
            self._file = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._file)
        self._begin = header.data_offset
        self.specs = {spec.name.removeprefix(prefix): spec for spec in header.tensors if spec.name.startswith(prefix)}
        self.metadata = header.metadata

    def __getitem__(self, name: str) -> Array:
        """Map a tensor; read only."""
        spec = self.specs[name]
        # An empty range cannot be mapped.
        if not spec.nbytes:
            return np.empty(spec.shape, spec.dtype)
        begin = self._begin + spec.begin
        # A mapping begins at a page; the tensor begins some bytes into it.
        skipped = begin % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._file, spec.nbytes + skipped, access=mmap.ACCESS_READ, offset=begin - skipped)
        return np.frombuffer(mapped, np.uint8)[skipped:].view(spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of the file."""
        return iter(self.specs)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.specs)
