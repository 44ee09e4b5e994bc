"""Which rounds a run has: a piece for each of its executions, whose rounds follow one another.

Between two pieces there may be rounds of others, where a run was interrupted and resumed. So its rounds are found without
looking through theirs, however many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from pydantic import Field

from fedgrass.protocol.items import Table, items_below
from fedgrass.protocol.names import FleetName, RoundNumber
from fedgrass.protocol.records import Record, RoundRecord

_QUERIES = 10  # for one page; each finds one run at least
_MOST = 999_999
_AFTER_ALL = "run$"  # the character after '#'


class RunPiece(Record):
    """Rounds of a run that are of one execution; it is written with each opening."""

    fleet: FleetName
    run: RoundNumber = Field(description="Number of the run's first round")
    first: RoundNumber
    last: RoundNumber = Field(description="The newest that was opened")
    execution: str

    def to_item(self) -> dict[str, Any]:
        """Return the item with its range key."""
        return {**super().to_item(), "key": f"{_prefix(self.run)}{self.first:06d}"}


@dataclass(frozen=True)
class RunRounds:
    """The numbers of a run's rounds in their order, by position."""

    pieces: tuple[RunPiece, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(piece.last - piece.first + 1 for piece in self.pieces))

    @property
    def count(self) -> int:
        """How many there are, those that were cancelled or have failed among them."""
        return self._ends[-1] if self._ends else 0

    def at(self, positions: Iterable[int]) -> list[int]:
        """Return the numbers of the rounds at these positions, from 0."""
        return [self._at(position) for position in positions]

    def _at(self, position: int) -> int:
        # The first piece that ends after it; its last round is at the position before that end.
        piece = bisect_right(self._ends, position)
        return self.pieces[piece].last - (self._ends[piece] - 1 - position)


def first_round(record: RoundRecord) -> int:
    """Return the number of the first round of a round's run; records of earlier releases do not tell their run."""
    return record.run.first if record.run else record.round


def piece_with(record: RoundRecord, before: int) -> RunPiece:
    """Return the piece that a round is the newest of, after so many rounds of the same execution."""
    return RunPiece(
        fleet=record.fleet,
        run=first_round(record),
        first=max(1, record.round - before),
        last=record.round,
        execution=record.execution,
    )


def run_rounds(rounds: Table, fleet: str, record: RoundRecord) -> RunRounds:
    """Find the rounds of the run that a round is part of.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    record
        Any of its rounds; it stands alone if an earlier release opened it, which wrote no pieces.
    """
    items: Sequence[dict[str, Any]] = list(
        items_below(rounds, "key", fleet, _prefix(first_round(record)), consistent=True)
    )
    return RunRounds(tuple(map(RunPiece.from_item, items)) or (piece_with(record, 0),))


def newest_runs(rounds: Table, fleet: str, limit: int, before: int = 0) -> tuple[list[RunPiece], int]:
    """Find the newest runs without reading the pieces of all.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    limit
        Runs at most.
    before
        Only those whose first round has a lower number; 0: from the newest on.

    Returns
    -------
    tuple
        The newest piece of each run, and the ``before`` with which older ones follow; 0 at the end.
    """
    found: dict[int, RunPiece] = {}
    below = _prefix(before) if 0 < before <= _MOST else _AFTER_ALL
    for _ in range(_QUERIES):
        page = rounds.query(
            KeyConditionExpression="#fleet = :fleet AND #range BETWEEN :first AND :below",
            ExpressionAttributeNames={"#fleet": "fleet", "#range": "key"},
            ExpressionAttributeValues={":fleet": fleet, ":first": "run#", ":below": below},
            ScanIndexForward=False,
            Limit=2 * limit,
        )
        for item in page["Items"]:
            piece = RunPiece.from_item(item)
            if piece.run not in found and len(found) == limit:
                return list(found.values()), min(found)
            found.setdefault(piece.run, piece)
        if "LastEvaluatedKey" not in page or not found:
            return list(found.values()), 0
        # Past the other pieces of the oldest run so far, of which a long one has many.
        below = _prefix(min(found))
    return list(found.values()), min(found)


def _prefix(run: int) -> str:
    return f"run#{run:06d}#"
