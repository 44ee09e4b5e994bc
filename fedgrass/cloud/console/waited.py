"""Whom an open round has no answer of, a page at a time: what is read for it does not grow with the fleet."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgrass.account import Account
from fedgrass.protocol.members import members_named
from fedgrass.protocol.participations import participations_at
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.roster import asked_in_piece, pieces_of
from fedgrass.protocol.waiting import Waiting

_PER_PAGE = 25
_PIECES = 4  # of the roster, some 250 names each; where almost all have answered, few pages are empty


@dataclass(frozen=True)
class WaitedFor:
    """Some devices without an answer, and the place after which the next page begins; empty at the end."""

    devices: list[Waiting] = field(default_factory=list)
    following: str = ""


def waited_for(account: Account, record: RoundRecord, place: str) -> WaitedFor:
    """Read one page of the devices that a round asked and that have not answered in time.

    Parameters
    ----------
    account
        The fleet's.
    record
        The round.
    place
        Where the page begins, as the page before said; anything else is the first page.
    """
    given, _, after = place.partition("-")
    count = pieces_of(record)
    first = int(given) if given.isascii() and given.isdecimal() and len(given) <= 6 else 0
    # A place of another round, or made up.
    first = first if first < count else 0
    end = min(first + _PIECES, count)
    for piece in range(first, end):
        missing = _missing(account, record, piece, after if piece == first else "")
        if not missing:
            continue
        shown = missing[:_PER_PAGE]
        more = f"{piece}-{shown[-1]}" if len(missing) > _PER_PAGE else _next(piece + 1, count)
        beats = {one.thing: one.heartbeat for one in members_named(account.devices_table, account.fleet, shown)}
        return WaitedFor([Waiting(thing, beats.get(thing)) for thing in shown], more)
    return WaitedFor([], _next(end, count))


def _missing(account: Account, record: RoundRecord, piece: int, after: str) -> list[str]:
    asked = [thing for thing in sorted(asked_in_piece(account.rounds_table, record, piece)) if thing > after]
    parts = participations_at(account.rounds_table, record.fleet, [(record.round, thing) for thing in asked])
    answered = {part.thing for part in parts if part.status is not None and not part.late}
    return [thing for thing in asked if thing not in answered]


def _next(piece: int, count: int) -> str:
    return f"{piece}-" if piece < count else ""
