"""Keys: a helper's, which seeds are sealed for, and a device's, by which helpers know it again."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.errors import DataError
from fedgrass.files import flush_directory
from fedgrass.protocol.secure import KEY_BYTES, encoded_key

HELPER_KEY, DEVICE_KEY = "helper.key", "device.key"


def helper_key(folder: Path) -> X25519PrivateKey:
    """Return the helper's private key of a folder; made there the first time, readable by its owner only."""
    return X25519PrivateKey.from_private_bytes(_kept(folder / HELPER_KEY))


def device_key(folder: Path) -> Ed25519PrivateKey:
    """Return the device's signing key of a folder; made there the first time, readable by its owner only."""
    return Ed25519PrivateKey.from_private_bytes(_kept(folder / DEVICE_KEY))


def public_text(key: X25519PrivateKey) -> str:
    """Return the public key as the fleet's settings take it."""
    return encoded_key(key.public_key().public_bytes_raw())


def _kept(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or absent, and never replaced: of two processes that make it at once both use the first one's.
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        # 0600 from the first moment, not by a chmod after the key is in it.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(os.urandom(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link fails where a rename would replace the other process's key.
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
        flush_directory(path.parent)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(f"{path}: {len(key)} bytes, expected a private key of {KEY_BYTES}. Restore it from a backup")
    return key
