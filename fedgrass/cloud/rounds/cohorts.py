"""Choose a round's cohort: how many of the devices that could take part, and which."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

from fedgrass.errors import RoundRefusedError
from fedgrass.protocol.cohort import draw, fits, is_member, piece_of
from fedgrass.protocol.members import FleetMember
from fedgrass.protocol.messages import ByLoss, Cohort
from fedgrass.protocol.roster import is_silo
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.utility import choose

# Salts to try: each is a fresh draw, so a fraction that is just large enough is found within a few.
_DRAWS = 200


def is_wanted(member: FleetMember, settings: FleetSettings) -> bool:
    """Whether a device is one of those that the settings ask; silos have no tags."""
    heartbeat, wanted = member.heartbeat, settings.cohort
    return (
        heartbeat is not None
        and fits(wanted.where, heartbeat.tags)
        and (settings.task == "evaluate" or heartbeat.examples >= wanted.min_examples or is_silo(member.thing))
    )


def draw_cohort(able: Iterable[str], fraction: float, at_least: int, fleet: str) -> tuple[Cohort, int]:
    """Draw a salt whose cohort has enough devices.

    Parameters
    ----------
    able
        Thing names of the devices that could take part.
    fraction
        Share of them that is asked, above 0 and up to 1.
    at_least
        Devices that the cohort must have.
    fleet
        The fleet's name, for the error.

    Returns
    -------
    tuple
        The cohort, and the number of devices in it.

    Raises
    ------
    RoundRefusedError
        If ``fraction`` of them is too few, draw after draw.
    """
    things = list(able)
    for _ in range(_DRAWS):
        # Unguessable: with a known salt a device could pick a name that is always asked.
        cohort = Cohort(salt=secrets.token_hex(16), fraction=fraction)
        asked = sum(is_member(cohort.salt, fraction, thing) for thing in things)
        if asked >= at_least:
            return cohort, asked
    raise RoundRefusedError(
        f"fleet {fleet!r}: a fraction of {fraction:g} of {len(things)} devices does not give the {at_least} updates "
        "that the settings ask for; raise fraction (of a tree of noise: lower the strategy's rounds) or lower min_updates"
    )


def next_piece(
    things: Sequence[str], rounds: int, at_least: int, fleet: str, before: Cohort | None
) -> tuple[Cohort, int]:
    """Return the piece of the fleet that a round with a tree of noise asks, which no other of its ``rounds`` rounds has asked.

    Pieces are equal arcs of the circle of lots, and their number is a power of two: the bounds are exact, so no device is in two.

    Parameters
    ----------
    things
        Names of the devices that could take part.
    rounds
        Rounds of a tree.
    at_least
        Devices that the cohort must have; a piece with fewer is passed over.
    fleet
        The fleet's name, for the error.
    before
        The cohort of the round before.

    Raises
    ------
    RoundRefusedError
        As `draw_cohort`, for the first piece of a new circle.
    """
    share = 1 / rounds
    if before is not None and before.fraction == share and (before.begin * rounds).is_integer():
        for number in range(int(before.begin * rounds) + 1, rounds):
            cohort = Cohort(salt=before.salt, fraction=share, begin=number * share)
            asked = sum(is_member(cohort.salt, share, thing, cohort.begin) for thing in things)
            if asked >= at_least:
                return cohort, asked
    return draw_cohort(things, share, at_least, fleet)


def choose_cohort(
    things: Sequence[str], settings: FleetSettings, fleet: str, before: Cohort | None
) -> tuple[Cohort, int]:
    """Choose who is asked of the devices that could take part, as the settings say.

    Parameters
    ----------
    things
        Their names; at least the least number of updates.
    settings
        The round's.
    fleet
        The fleet's name, for an error.
    before
        The cohort of the round before, which a fair one follows on the circle of lots.

    Returns
    -------
    tuple
        The cohort, and the number of devices in it.

    Raises
    ------
    RoundRefusedError
        If ``fraction`` of the devices is too few.
    """
    wanted = settings.cohort
    if settings.task == "fit" and (rounds := settings.strategy.tree):
        return next_piece(things, rounds, settings.min_updates, fleet, before)
    # A plain fraction: sampled independently, which is what privacy amplification assumes.
    if wanted.size == 0 and not wanted.fair:
        cohort, asked = draw_cohort(things, settings.fraction, settings.min_updates, fleet)
        return cohort.model_copy(update={"where": wanted.where, "min_examples": wanted.min_examples}), asked
    count = _wanted_of(things, settings)
    follows = before is not None and before.fair and wanted.fair
    # The same salt in all rounds of a turn: pieces of one circle do not overlap, so everyone is asked once before
    # anyone twice.
    salt = before.salt if before is not None and follows else secrets.token_hex(16)
    begin = (before.begin + before.fraction) % 1.0 if before is not None and follows else 0.0
    piece = piece_of([draw(salt, thing) for thing in things], count, begin)
    cohort = Cohort(
        salt=salt,
        fraction=piece.fraction,
        begin=piece.begin,
        where=wanted.where,
        min_examples=wanted.min_examples,
        fair=wanted.fair,
    )
    return cohort, piece.devices


def choose_by_loss(
    things: Sequence[str], settings: FleetSettings, number: int, losses: Mapping[str, float]
) -> tuple[Cohort, int]:
    """Choose who is asked by lot and by what devices reported last; see `fedgrass.protocol.utility`.

    Parameters
    ----------
    things
        Names of the devices that could take part; at least the least number of updates.
    settings
        The round's, with ``cohort.by_loss``.
    number
        The round.
    losses
        What counts for the round, by thing, of those devices of which it is known.

    Returns
    -------
    tuple
        The cohort, and the number of devices in it.
    """
    wanted = settings.cohort
    salt = secrets.token_hex(16)
    found = choose(
        [draw(salt, thing) for thing in things],
        [losses.get(thing) for thing in things],
        _wanted_of(things, settings),
        candidates=wanted.by_loss.candidates,
        explore=wanted.by_loss.explore,
    )
    cohort = Cohort(
        salt=salt,
        fraction=found.fraction,
        where=wanted.where,
        min_examples=wanted.min_examples,
        by_loss=ByLoss(explore=found.explore, loss=found.loss, since=first_counting(settings, number)),
    )
    return cohort, found.devices


def first_counting(settings: FleetSettings, number: int) -> int:
    """Return the first round of which a reported loss counts in a round."""
    return max(1, number - settings.cohort.by_loss.max_age)


def _wanted_of(things: Sequence[str], settings: FleetSettings) -> int:
    """Return how many of some devices to ask; never below min_updates: a smaller cohort could not make a round."""
    wanted = settings.cohort
    # 1e-9: 10 * 1.1 is a little more than 11 in binary, and would ask a twelfth.
    count = math.ceil(wanted.size * wanted.over_ask - 1e-9) or round(settings.fraction * len(things))
    return max(count, settings.min_updates)


def quorum_of(settings: FleetSettings, asked: int) -> int:
    """Return how many updates end the collecting: the cohort's size, if as many are asked, else their share.

    Of asynchronous rounds it is ``buffer_size``, however few are asked: updates of earlier rounds come too.
    """
    if settings.is_asynchronous:
        return settings.buffer_size
    size = settings.cohort.size
    return size if 0 < size <= asked else max(settings.min_updates, math.ceil(settings.quorum * asked))


def why_fewer(alive: list[FleetMember], fit: list[FleetMember]) -> str:
    """Say how many that are alive the settings do not ask; empty if none."""
    others = len(alive) - len(fit)
    return (
        f". {others} of {len(alive)} that are alive lack the tags or the examples that cohort asks for"
        if others
        else ""
    )
