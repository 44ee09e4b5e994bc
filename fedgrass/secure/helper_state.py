"""What a helper keeps for good: its key, what it has answered, and which devices' keys it knows since when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.files import write_atomically
from fedgrass.secure.keys import helper_key

Known = dict[str, tuple[str, float]]
"""By device: its key, and since when it is known, in seconds since the epoch."""


class HelperState(Protocol):
    """Where a helper keeps it. Whatever is returned is durable: it is there after a kill, and for every other process."""

    @property
    def where(self) -> str:
        """Where a person finds the devices' keys."""

    def key(self) -> X25519PrivateKey:
        """Return the helper's private key, made the first time."""

    def known(self) -> Known:
        """Return all devices' keys so far."""

    def keep(self, new: Mapping[str, tuple[str, float]]) -> Known:
        """Keep keys of devices that had none, and return what is kept of these devices now: of two, the first one stays."""

    def first_for(self, identity: str, digest: str) -> str:
        """Return the digest of the set that a round is answered for: this one, if there was none before.

        Parameters
        ----------
        identity
            The round's.
        digest
            Of the set that is asked for.
        """


class FolderState:
    """It in a folder, of one process at a time: a core device's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        """The file."""
        return str(self._devices)

    @property
    def _devices(self) -> Path:
        return self._folder / "devices.json"

    def key(self) -> X25519PrivateKey:
        """Return the key of the folder, readable by its owner only."""
        return helper_key(self._folder)

    def known(self) -> Known:
        """Return what the file says."""
        try:
            known: Known = json.loads(self._devices.read_text())
        except FileNotFoundError:
            known = {}
        return known

    def keep(self, new: Mapping[str, tuple[str, float]]) -> Known:
        """Write the file again, with them."""
        known = {**new, **self.known()}
        write_atomically(self._devices, json.dumps(known).encode())
        return {thing: known[thing] for thing in new}

    def first_for(self, identity: str, digest: str) -> str:
        """Return what a file of the round's says, written if there is none."""
        path = self._folder / "answered" / identity
        if path.exists():
            return path.read_text()
        write_atomically(path, digest.encode())
        return digest
