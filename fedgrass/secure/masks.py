"""Masks: uniform integers modulo two to the 16 or 32, expanded from a seed of 32 bytes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

SEED_BYTES = 32
COMMITMENT_BYTES = 16
PIECE = 1 << 16
"""Coordinates that are expanded at a time."""

Masked = NDArray[np.uint16] | NDArray[np.uint32]

_BLOCK = 64  # bytes of a ChaCha20 block
# Encrypting zeros gives the key stream itself.
_ZEROS = bytes(4 * PIECE)


def dtype_of(bits: int) -> np.dtype[Any]:
    """Return the little-endian unsigned integers of 16 or 32 bits."""
    return np.dtype("<u2" if bits == 16 else "<u4")


class Expander:
    """Expands seeds piece by piece, into one piece's memory.

    A mask is the key stream of ChaCha20 (RFC 8439) under its seed, which serves for nothing else, so the nonce is zero.
    """

    def __init__(self, bits: int) -> None:
        self.dtype = dtype_of(bits)
        self._memory = bytearray(PIECE * self.dtype.itemsize)
        self._values: Masked = np.frombuffer(self._memory, self.dtype)

    def piece(self, seed: bytes, index: int, count: int) -> Masked:
        """Return one piece of a mask; the next call overwrites it.

        Parameters
        ----------
        seed
            Of the mask, 32 bytes.
        index
            Number of the piece, from 0: it begins at coordinate ``index * PIECE``.
        count
            Coordinates to make, at most `PIECE`.

        Returns
        -------
        Masked
            The piece, in the expander's own memory.
        """
        size = count * self.dtype.itemsize
        # A piece is a whole number of blocks, so the stream is entered at its counter.
        block = index * PIECE * self.dtype.itemsize // _BLOCK
        key_stream(seed, block).update_into(memoryview(_ZEROS)[:size], memoryview(self._memory)[:size])
        return self._values[:count]


def key_stream(key: bytes, block: int = 0) -> Any:
    """Return a cipher whose output on zeros is ChaCha20's key stream from a block of 64 bytes on."""
    return Cipher(algorithms.ChaCha20(key, block.to_bytes(8, "little") + bytes(8)), mode=None).encryptor()


def pieces(length: int) -> range:
    """Return the numbers of the pieces of a vector."""
    return range(-(-length // PIECE))


def span(index: int, length: int) -> slice:
    """Return where a piece lies in a vector."""
    return slice(index * PIECE, min(length, (index + 1) * PIECE))


def commitment(seed: bytes) -> bytes:
    """Return what shows later that this was the seed, and tells nothing of it before.

    Whoever looks for two seeds with the same one needs 2**64 attempts, and has won that helpers do not agree in one round.
    """
    return hashlib.sha256(b"fedgrass seed 1" + seed).digest()[:COMMITMENT_BYTES]


def add_mask(values: Masked, seed: bytes, expander: Expander) -> None:
    """Add a seed's mask to a vector, in place, modulo two to its width.

    Parameters
    ----------
    values
        [n], changed.
    seed
        `SEED_BYTES` bytes.
    expander
        Of the values' width.
    """
    for index in pieces(len(values)):
        part = values[span(index, len(values))]
        np.add(part, expander.piece(seed, index, len(part)), out=part)


def encrypted(content: bytes, key: bytes, position: int) -> bytes:
    """Encrypt or decrypt a part of a helper's sums.

    Parameters
    ----------
    content
        The bytes.
    key
        Of this helper and set, 32 bytes.
    position
        Where in the sums they begin, in bytes; a stream cipher is entered there.

    Returns
    -------
    bytes
        As many bytes.
    """
    cipher = key_stream(key, position // _BLOCK)
    # The rest of a block is drawn and dropped.
    cipher.update(bytes(position % _BLOCK))
    found: bytes = cipher.update(content)
    return found
