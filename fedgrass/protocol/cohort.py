"""Who takes part in a round, decided by each device alone from an announcement whose size does not grow with the fleet."""

from __future__ import annotations

import hashlib


def draw(salt: str, thing: str) -> float:
    """Return the device's lot in [0, 1): the first 8 bytes of SHA-256(salt + thing) over 2^64."""
    digest = hashlib.sha256((salt + thing).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_member(salt: str, fraction: float, thing: str) -> bool:
    """Say whether a device is in the cohort, as device and cloud both find out by themselves.

    Parameters
    ----------
    salt
        The round's own, drawn by the cloud: with it nobody can tell the next cohort from this one.
    fraction
        Share of the fleet that is asked, above 0 and up to 1; 1 takes every device.
    thing
        The device's thing name.

    Returns
    -------
    bool
        Whether the salted hash of its name, a number from 0 to 1, is below the fraction.

    Examples
    --------
    >>> is_member("salt", 1.0, "press-7")
    True
    >>> sum(is_member("salt", 0.25, f"press-{number}") for number in range(1000))
    240
    """
    return fraction >= 1.0 or draw(salt, thing) < fraction
