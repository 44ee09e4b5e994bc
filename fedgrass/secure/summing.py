"""A helper's sums as a file, piece by piece: what is there already is not summed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgrass.files import write_atomically
from fedgrass.secure.answer import NOISED, header_bytes, sums_of
from fedgrass.secure.lock import locked, own_key, tokens
from fedgrass.secure.masks import Expander, encrypted, pieces, span
from fedgrass.secure.request import AcceptedSet
from fedgrass.secure.shares import Share, seeds_of

NoiseSeeds = Callable[[AcceptedSet, int], bytes]

# Another text after each boot of the device.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def write_sums(
    path: Path,
    accepted: AcceptedSet,
    helper: int,
    seeds: Sequence[Sequence[bytes]],
    key: X25519PrivateKey,
    after_piece: Callable[[], None],
    *,
    noise_of: NoiseSeeds | None = None,
) -> None:
    """Write a helper's answer: the sums of its masks, its lock, and its tokens.

    Parameters
    ----------
    path
        File to write; it may hold what an earlier attempt wrote.
    accepted
        The set.
    helper
        The helper's number.
    seeds
        Of each of the set's devices, those that this helper was given, in the order of its masks.
    key
        The helper's private key.
    after_piece
        Called between two pieces of a sum; may raise.
    noise_of
        As of `fedgrass.secure.helper.Helper`.
    """
    digest, task = accepted.digest, accepted.task
    # Everything follows from the set and the key, so a repeated attempt writes the same bytes.
    header, secret = header_bytes(accepted, helper), own_key(key, digest)
    size = task.bits // 8
    with path.open(_mode(path)) as stream:
        hashed = hashlib.sha256()
        position = _resumed(stream, header, hashed, accepted, helper)
        expander = Expander(task.bits)
        done = 0
        for group, mask in sums_of(accepted, helper):
            own = _seeds_for(accepted, helper, group, mask, seeds)
            seed = noise_of(accepted, group) if noise_of else None
            share = Share(accepted, helper, group, key, seed) if accepted.adding else None
            for index in pieces(accepted.length):
                part = span(index, accepted.length)
                width = (part.stop - part.start) * size
                if done + width > position:
                    # `done` is the position in the key stream: no part of it is ever used for two contents.
                    content = encrypted(_summed(own, index, part.stop - part.start, expander, share), secret, done)
                    hashed.update(content)
                    stream.write(content)
                    after_piece()
                done += width
        stream.write(locked(secret + hashed.digest(), key, task, helper, digest))
        stream.write(tokens(key, task, helper, digest))
        # A longer file may be left of another set.
        stream.truncate()
        stream.flush()


def _mode(path: Path) -> Literal["r+b", "w+b"]:
    """Go on with a file of this boot only: a power cut may have left blocks of zeros in one from before it."""
    boot = path.with_name(f"{path.name}.boot")
    if path.exists() and boot.exists() and boot.read_text() == _this_boot():
        return "r+b"
    path.unlink(missing_ok=True)
    write_atomically(boot, _this_boot().encode())
    return "w+b"


def _this_boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _resumed(stream: BinaryIO, header: bytes, hashed: hashlib._Hash, accepted: AcceptedSet, helper: int) -> int:
    """Go behind the last whole piece of an earlier attempt; returns the bytes of sums that are there."""
    # Of another set, or nothing yet.
    if stream.read(len(header)) != header:
        stream.seek(0)
        stream.truncate()
        stream.write(header)
        return 0
    size, position = accepted.task.bits // 8, 0
    for _ in sums_of(accepted, helper):
        for index in pieces(accepted.length):
            part = span(index, accepted.length)
            content = stream.read((part.stop - part.start) * size)
            if len(content) < (part.stop - part.start) * size:
                stream.seek(len(header) + position)
                return position
            hashed.update(content)
            position += len(content)
    return position


def _seeds_for(
    accepted: AcceptedSet, helper: int, group: int, mask: int, seeds: Sequence[Sequence[bytes]]
) -> list[bytes]:
    if mask == NOISED:
        return seeds_of(accepted, helper, group, seeds)
    number = accepted.task.known_to(helper).index(mask)
    return [one[number] for one, member in zip(seeds, accepted.members, strict=True) if member.group == group]


def _summed(seeds: Sequence[bytes], index: int, count: int, expander: Expander, share: Share | None) -> bytes:
    total = np.zeros(count, expander.dtype)
    for seed in seeds:
        # Wraps around by design: masks are integers modulo 2^16 or 2^32.
        np.add(total, expander.piece(seed, index, count), out=total)
    if share is not None:
        share.add_to(total, index)
    return total.tobytes()
