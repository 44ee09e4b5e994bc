"""Who takes part in a round, decided by each device alone from an announcement whose size does not grow with the fleet."""

from __future__ import annotations

import hashlib


def draw(salt: str, thing: str) -> float:
    """Return the device's lot in [0, 1): the first 8 bytes of SHA-256(salt + thing) over 2^64."""
    digest = hashlib.sha256((salt + thing).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_member(salt: str, fraction: float, thing: str) -> bool:
    """Whether this device is in the cohort; a fraction of 1 takes everyone."""
    return fraction >= 1.0 or draw(salt, thing) < fraction
