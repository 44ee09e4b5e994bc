"""What moto would hold in memory for as long as the process runs: here it is let go, or kept on disk."""

from __future__ import annotations

import os
import tempfile
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import moto.s3.models
from moto.core.common_models import BaseModel
from moto.s3.models import FakeKey

from fedgrass.local.aws.overrides import override


def repair(bodies: Path) -> None:
    """Have moto forget what was deleted or replaced, and keep the objects of S3 in files of the folder ``bodies``.

    moto lists every instance that it ever made, for a dashboard that is not served here: each item of each copy of a
    table that a transaction took, each object that was written over. And it copies all objects of a bucket, content and
    all, to list the versions of a few.
    """
    bodies.mkdir(parents=True, exist_ok=True)
    # moto's own appends each instance to a list of its class.
    override(BaseModel, "__new__", lambda kind, *_, **__: object.__new__(kind))
    # Not by `override`: moto's class has no such method that could be missed.
    setattr(FakeKey, "__deepcopy__", lambda key, _memo: _listed(key))  # noqa: B010
    override(moto.s3.models, "tempfile", SimpleNamespace(SpooledTemporaryFile=partial(_Body, bodies)))


def _listed(key: FakeKey) -> FakeKey:
    """Copy what a list says of an object; the content is shared."""
    listed: FakeKey = object.__new__(FakeKey)
    vars(listed).update(vars(key), disposed=True)  # or moto would warn that nobody closed the content
    return listed


class _Body:
    """Takes the place of a ``SpooledTemporaryFile``, but is an open file only while it is read or written.

    An account has more objects than a process may have open files. The file goes with the last reference to it, so there
    is nothing to close.
    """

    def __init__(self, folder: Path, max_size: int = 0) -> None:  # noqa: ARG002 - in memory up to there, says moto
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        self._path = Path(name)
        self._position = 0
        weakref.finalize(self, self._path.unlink, missing_ok=True)

    def seek(self, position: int) -> None:
        self._position = position

    def truncate(self) -> None:
        os.truncate(self._path, self._position)

    def read(self, size: int = -1) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._position)
            content = file.read(size)
        self._position += len(content)
        return content

    def write(self, content: bytes) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._position)
            self._position += file.write(content)

    def close(self) -> None:
        pass
