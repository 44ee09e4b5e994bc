"""Who takes part in a round, decided by each device alone from an announcement whose size does not grow with the fleet.

A device's lot is a salted hash of its name. Who is asked are those whose lots lie in a piece of the circle of all lots: so
cohorts that follow one another on the circle of one salt ask every device once before any is asked again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol


class Chooses(Protocol):
    """What an announcement says of a choice by loss: a `fedgrass.protocol.messages.ByLoss`."""

    @property
    def explore(self) -> float:
        """Share of the circle that is asked whatever the loss."""

    @property
    def loss(self) -> float:
        """The least that others must have reported."""


class Asks(Protocol):
    """What an announcement says of who is asked: a `fedgrass.protocol.messages.Cohort`."""

    @property
    def salt(self) -> str:
        """The salt of the lots."""

    @property
    def fraction(self) -> float:
        """Share of the circle, above 0 and up to 1."""

    @property
    def begin(self) -> float:
        """Where the piece begins on the circle, from 0."""

    @property
    def where(self) -> Mapping[str, Collection[str]]:
        """Tags that a device must have, each with one of some values."""

    @property
    def by_loss(self) -> Chooses | None:
        """How the losses that devices reported choose among those lots; None: all of them are asked."""


def draw(salt: str, thing: str) -> float:
    """Return the device's lot in [0, 1): the first 8 bytes of SHA-256(salt + thing) over 2^64."""
    # More bits than a float holds, so that two devices hardly ever have the same lot.
    digest = hashlib.sha256((salt + thing).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_member(salt: str, fraction: float, thing: str, begin: float = 0.0) -> bool:
    """Say whether a device is in the cohort, as device and cloud both find out by themselves.

    Parameters
    ----------
    salt
        The round's own, drawn by the cloud: with it nobody can tell the next cohort from this one.
    fraction
        Share of the fleet that is asked, above 0 and up to 1; 1 takes every device.
    thing
        The device's thing name.
    begin
        Where on the circle of lots the cohort begins.

    Returns
    -------
    bool
        Whether the salted hash of its name, a number from 0 to 1, is less than the fraction past ``begin``.

    Examples
    --------
    >>> is_member("salt", 1.0, "press-7")
    True
    >>> sum(is_member("salt", 0.25, f"press-{number}") for number in range(1000))
    240
    """
    # 1 is told apart, because a lot just below `begin` could round to a distance of 1.0.
    return fraction >= 1.0 or (draw(salt, thing) - begin) % 1.0 < fraction


def takes(cohort: Asks, thing: str) -> bool:
    """Say whether a device's lot is in a cohort, whatever its tags and its loss are."""
    return is_member(cohort.salt, cohort.fraction, thing, cohort.begin)


def is_asked(cohort: Asks, thing: str, loss: float | None) -> bool:
    """Say whether a device is asked, whatever its tags are.

    Parameters
    ----------
    cohort
        The round's.
    thing
        The device's thing name.
    loss
        What it reported last, as far as the round counts it (`fedgrass.protocol.utility.LastLosses.before`); None: unknown.

    Returns
    -------
    bool
        Without ``by_loss`` as of `takes`. Else a lot in the first ``explore`` of the circle is enough; another of the cohort's
        needs a loss that is high enough too.
    """
    by = cohort.by_loss
    if by is None or not takes(cohort, thing):
        return takes(cohort, thing)
    return is_member(cohort.salt, by.explore, thing, cohort.begin) or (loss is not None and loss >= by.loss)


def fits(where: Mapping[str, Collection[str]], tags: Mapping[str, str]) -> bool:
    """Say whether a device has the tags that a cohort is of.

    Examples
    --------
    >>> fits({"site": ("north", "east")}, {"site": "east", "hardware": "pi4"})
    True
    >>> fits({"site": ("north",)}, {})
    False
    """
    return all(tags.get(name) in values for name, values in where.items())


class Piece(NamedTuple):
    """A piece of the circle of lots, and how many devices it takes."""

    begin: float
    fraction: float
    devices: int


def piece_of(lots: Iterable[float], count: int, begin: float) -> Piece:
    """Return the piece that takes so many devices, from ``begin`` on.

    It ends half-way between two lots, so that no rounding moves a device from one cohort to the next.

    Parameters
    ----------
    lots
        Of the devices that could take part.
    count
        How many to take, 1 at least; all, if there are no more.
    begin
        Where the piece begins: where the one before ended.

    Examples
    --------
    >>> piece_of([0.1, 0.4, 0.8], 2, 0.3)
    Piece(begin=0.3, fraction=0.65, devices=2)
    """
    # Distances forward from `begin`: the circle wraps around at 1.
    ahead = sorted((lot - begin) % 1.0 for lot in lots)
    if count >= len(ahead):
        return Piece(begin, 1.0, len(ahead))
    return Piece(begin, (ahead[count - 1] + ahead[count]) / 2, count)
