"""Where a round's updates come from: a list of references, and a stream for each."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol

from pydantic import Field

from fedgrass.errors import UpdateError
from fedgrass.protocol.names import UPDATE_FILE

# Requests in flight: S3 answers the first byte in tens of milliseconds, longer than a small update takes to read.
_AHEAD = 16
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class UpdateReference:
    """One update in storage, pinned: ``etag`` and ``version_id`` say which bytes are meant.

    ``thing`` is who the storage says wrote it; empty if the key is not an update's. ``round`` is the earlier round under whose
    prefix it lies, if not this one.
    """

    thing: str
    key: str
    bytes: Annotated[int, Field(ge=0)]
    etag: str = ""
    version_id: str | None = None
    round: int | None = None


class UpdateSource(Protocol):
    """A place that holds updates."""

    def list(self) -> Sequence[UpdateReference]:
        """Return what is there now, in any order."""
        ...

    def open(self, reference: UpdateReference) -> BinaryIO:
        """Open an update at its start, for ``read`` and ``readinto``.

        Raises
        ------
        UpdateError
            Coded ``missing`` if what the reference pins is no longer there.
        TransferError
            If the storage does not answer: the round's fault, not the update's.
        """
        ...


class Prefetched:
    """A source of which an update is opened at once: there is nothing to gain from opening the next meanwhile."""


class Opener(Protocol):
    """What opens an update that was asked for: called, or closed."""

    def __call__(self) -> BinaryIO:
        """Open it, or raise what opening it raised."""
        ...

    def close(self) -> None:
        """Give it up unopened."""
        ...


class Asking(ABC):
    """A source that can be asked for an update without waiting for it: no thread has to wait in its place."""

    @abstractmethod
    def ask(self, reference: UpdateReference, *, among: int) -> Opener | None:
        """Ask for an update, one of so many that are asked for together; None if it can only be opened."""


class _Waited:
    """An update that a thread opens."""

    def __init__(self, opening: Future[BinaryIO]) -> None:
        self._opening = opening

    def __call__(self) -> BinaryIO:
        return self._opening.result()

    def close(self) -> None:
        if not self._opening.cancel() and self._opening.exception() is None:
            self._opening.result().close()


class Folder(Prefetched):
    """Updates in a folder: ``<thing>.safetensors``, or ``<thing>/update.safetensors`` as in the bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> list[UpdateReference]:
        """Return the folder's update files."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    found.append(UpdateReference(entry.name.removesuffix(_SUFFIX), entry.name, entry.stat().st_size))
                    continue
                # No update in that folder: half an upload, or something else's folder.
                with suppress(OSError):
                    size = os.stat(f"{entry.path}/{UPDATE_FILE}").st_size  # noqa: PTH116 - as above
                    found.append(UpdateReference(entry.name, f"{entry.name}/{UPDATE_FILE}", size))
        return found

    def open(self, reference: UpdateReference) -> BinaryIO:
        """Open the file."""
        try:
            return open(f"{self._folder}/{reference.key}", "rb", buffering=0)  # noqa: PTH123 - a Path takes longer than to read
        except OSError as error:
            raise UpdateError("missing", f"{reference.key}: cannot be read ({error.strerror})") from error


def open_ahead(
    source: UpdateSource, references: Sequence[UpdateReference], *, ahead: int = _AHEAD
) -> Generator[tuple[UpdateReference, Callable[[], BinaryIO]], None, None]:
    """Open updates in order, the next few in the background.

    Opening costs a request's latency, reading does not need one: with thousands of small updates that is most of the
    time.

    Parameters
    ----------
    source
        Where the updates are.
    references
        Which.
    ahead
        How many are opened at once.

    Yields
    ------
    tuple
        A reference, and a function that returns its open stream or raises what opening it raised.
    """
    # Files open at once; a pool of threads would only cost time.
    if isinstance(source, Prefetched):
        yield from ((reference, partial(source.open, reference)) for reference in references)
        return
    waiting: deque[tuple[UpdateReference, Opener]] = deque()
    rest = iter(references)
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="open") as pool:
        try:
            while True:
                # Refilled before each yield, so that the window of open requests stays full while the caller reads.
                while len(waiting) < ahead and (reference := next(rest, None)) is not None:
                    asked = source.ask(reference, among=len(references)) if isinstance(source, Asking) else None
                    waiting.append((reference, asked or _Waited(pool.submit(source.open, reference))))
                if not waiting:
                    return
                reference, opener = waiting.popleft()
                yield reference, opener
        # A caller that stops early leaves open connections behind unless they are closed here.
        finally:
            for _, opener in waiting:
                opener.close()
