"""Why devices of a round sent no update, as strategies are told that count failures."""

from __future__ import annotations

from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import Table

SERVER_ROUND = "server_round"
"""In ``fit.config``: an app's own number of a round (`fedgrass.cloud.flower`)."""


def failures_of(rounds: Table, record: RoundRecord) -> list[str]:
    """Return a line for each device that failed or declined, or was asked and said nothing; none if nobody waited for it.

    The collecting is over, and what comes later is marked as late: a job that runs again is told the same.
    """
    parts = participations(rounds, record.fleet, record.round, consistent=True)
    said = [
        f"{part.thing} {part.status}: {part.reason}"
        for part in parts
        if part.asked and not part.late and part.status in {"failed", "declined"}
    ]
    silent = max(0, record.asked - record.uploaded - len(said))
    return sorted(said) + ["a device that was asked sent nothing in time"] * silent


def number_of(record: RoundRecord) -> int:
    """Return the round's number as its strategy counts: the app's own where one drives the fleet."""
    number = record.settings.fit.config.get(SERVER_ROUND)
    return number if isinstance(number, int) and number > 0 else record.round
