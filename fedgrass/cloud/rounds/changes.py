"""Changes of a round's record."""

from __future__ import annotations

from typing import Any

from fedgrass.protocol.records import RoundRecord, round_key
from fedgrass.protocol.tables import Table
from fedgrass.protocol.writes import change, transact, update_item

__all__ = ["change", "change_round", "transact"]


def change_round(rounds: Table, fleet: str, number: int, **clauses: Any) -> RoundRecord | None:
    """Change a round's record, if a condition holds.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round.
    clauses
        As of `fedgrass.protocol.writes.change`.

    Returns
    -------
    RoundRecord or None
        The record as it is then; None if the condition does not hold.
    """
    try:
        answer = update_item(
            rounds, Key={"fleet": fleet, "key": round_key(number)}, ReturnValues="ALL_NEW", **change(**clauses)
        )
    except rounds.meta.client.exceptions.ConditionalCheckFailedException:
        return None
    return RoundRecord.from_item(answer["Attributes"])
