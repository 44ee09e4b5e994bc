"""Updates of virtual devices as the aggregator reads them: in memory, or on disk where they are many or wait for their round."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from fedgrass.cloud.aggregator.sources import Prefetched, UpdateReference
from fedgrass.errors import UpdateError
from fedgrass.files import write_atomically
from fedgrass.protocol.names import update_key
from fedgrass.simulation.population import FLEET, thing_name
from fedgrass.update.decoded import DecodedUpdate

Content = bytes | DecodedUpdate
"""An update: a file's content, or what it would say."""

# Bytes of update files.
_IN_MEMORY = 256 << 20


class VirtualUpdates(Prefetched):
    """An `UpdateSource`. Beyond 256 MB in memory, updates become files in ``scratch``."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._held: dict[str, tuple[UpdateReference, Content | Path]] = {}
        self._bytes = 0

    def put(self, number: int, thing: str, content: Content, *, late: bool = False) -> None:
        """Take in a device's update; what exceeds the bound on memory goes to disk.

        Parameters
        ----------
        number
            The round that the update is for.
        thing
            The device.
        content
            The update.
        late
            Whether that round is over.
        """
        key = update_key(FLEET, number, thing)
        size = len(content) if isinstance(content, bytes) else content.nbytes
        reference = UpdateReference(thing=thing, key=key, bytes=size, round=number if late else None)
        if self._bytes + size > _IN_MEMORY:
            path = self._scratch / f"{number}-{thing}"
            path.write_bytes(_file(content))
            self._held[reference.key] = (reference, path)
        else:
            self._bytes += size
            self._held[reference.key] = (reference, content)

    def joined(self, other: VirtualUpdates | None) -> VirtualUpdates:
        """Take over what another one holds."""
        if other is not None:
            self._held |= other._held
            self._bytes += other._bytes
        return self

    def list(self) -> list[UpdateReference]:
        """Return what is there."""
        return [reference for reference, _ in self._held.values()]

    def open(self, reference: UpdateReference) -> BinaryIO:
        """Open an update."""
        found = self._held.get(reference.key)
        if found is None:
            raise UpdateError("missing", f"{reference.key}: there is no such update")
        held = found[1]
        if isinstance(held, DecodedUpdate):
            return cast("BinaryIO", held)  # which the aggregator's screening knows from a stream
        # Unbuffered: the reader takes large pieces itself.
        return io.BytesIO(held) if isinstance(held, bytes) else held.open("rb", buffering=0)

    def clear(self) -> None:
        """Forget all of them."""
        for _, held in self._held.values():
            if isinstance(held, Path):
                held.unlink(missing_ok=True)
        self._held.clear()
        self._bytes = 0


class LateUpdates:
    """Updates on their way to a later round, as files: a simulation that was interrupted finds them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, number: int, thing: str, content: Content) -> None:
        """Keep on disk a device's update of a round that is over by now.

        Parameters
        ----------
        number
            The round that the update is for.
        thing
            The device.
        content
            The update.
        """
        write_atomically(self._path(number, thing), _file(content))

    def deliver(self, arrived: Iterable[tuple[int, int]], updates: VirtualUpdates) -> None:
        """Hand over what has arrived, by round and device; one that could not train then sent nothing."""
        for number, device in arrived:
            path = self._path(number, thing_name(device))
            if path.exists():
                updates.put(number, thing_name(device), path.read_bytes(), late=True)

    def forget(self, before: int) -> None:
        """Let go of the updates of earlier rounds than this one."""
        # Strategies take updates up to a bound of age; older ones would stay for ever.
        for path in self._folder.glob("late-*"):
            if int(path.name.split("-")[1]) < before:
                path.unlink()

    def _path(self, number: int, thing: str) -> Path:
        return self._folder / f"late-{number:06d}-{thing}"


def _file(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.to_bytes()
