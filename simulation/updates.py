"""Updates of virtual devices, as the aggregator's reader finds them: in memory, or on the scratch disk where they are many."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from cloud.aggregator.sources import Near, UpdateReference
from fedgrass.errors import UpdateError
from fedgrass.protocol.names import update_key
from simulation.world import FLEET

_IN_MEMORY = 256 << 20


class VirtualUpdates(Near):
    """An `UpdateSource`. Beyond 256 MB in memory, updates become files in ``scratch``."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._held: dict[str, tuple[UpdateReference, bytes | Path]] = {}
        self._bytes = 0

    def put(self, number: int, thing: str, content: bytes) -> None:
        """Take a device's update of a round."""
        reference = UpdateReference(thing=thing, key=update_key(FLEET, number, thing), bytes=len(content))
        if self._bytes + len(content) > _IN_MEMORY:
            path = self._scratch / f"{number}-{thing}"
            path.write_bytes(content)
            self._held[reference.key] = (reference, path)
        else:
            self._bytes += len(content)
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
        return io.BytesIO(found[1]) if isinstance(found[1], bytes) else found[1].open("rb", buffering=0)

    def clear(self) -> None:
        """Forget all of them."""
        for _, held in self._held.values():
            if isinstance(held, Path):
                held.unlink(missing_ok=True)
        self._held.clear()
        self._bytes = 0
