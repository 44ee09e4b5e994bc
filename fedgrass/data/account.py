"""What a loader left out, filled in and guessed while it read a device's data."""

from __future__ import annotations

from fedgrass.errors import DataError

# Bad rows that are named: enough to see what is wrong, few enough for a message.
_NAMED = 3
_EARLY = 10_000
_MOST_NOTES = 8


class Account:
    """Counts of what is wrong in data, against the share of it that may be.

    Parameters
    ----------
    what
        Begins each message: ``data /var/lib/mill.csv``.
    unit
        What is counted: ``rows``, ``images``.
    max_bad_share
        Above it the data are refused.
    """

    def __init__(self, what: str, unit: str, max_bad_share: float) -> None:
        self.what = what
        self.good = 0
        self.bad = 0
        self.filled = 0
        self.skipped = 0
        self.notes: list[str] = []
        self._unit = unit
        self._share = max_bad_share
        self._first: list[str] = []
        self._others: list[Account] = []

    def says(self, note: str) -> None:
        """Keep a guess, or what was left out by rule."""
        if note not in self.notes and len(self.notes) < _MOST_NOTES:
            self.notes.append(note)

    def leaves_out(self, reason: str, count: int = 1) -> None:
        """Count a bad row or image; ``reason`` is whole, with the file."""
        self.bad += count
        if len(self._first) < _NAMED:
            self._first.append(reason)
        if self.bad > _EARLY and self.bad > self.good and self._share < 0.5:
            self.judge()  # there is no use in reading millions more

    def includes(self, other: Account) -> None:
        """Also say what another account has left out."""
        if other.bad:
            self._others.append(other)

    def judge(self) -> None:
        """Refuse the data if too much of it is bad; raises `DataError` with the first reason."""
        total = self.good + self.bad
        # A single bad row of a single row is its own message.
        if self.bad > self._share * total:
            more = f"; {self.bad} of {total} {self._unit} are bad, maxBadShare is {self._share:g}" if total > 1 else ""
            raise DataError(f"{self._first[0]}{more}")

    @property
    def trouble(self) -> str:
        """What the operator should know; empty if all was read as it stands."""
        said = [
            f"{one.bad} of {one.good + one.bad} {one._unit} left out ({one._first[0].removeprefix(self.what).lstrip(':/ ')})"
            for one in (*self._others, self)
            if one.bad
        ]
        if self.skipped:
            said.append(f"{self.skipped} rows with a missing value left out")
        if self.filled:
            said.append(f"{self.filled} missing values filled in")
        return f"{self.what}: {'; '.join(said)}" if said else ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """The first few of what was left out, by name."""
        return tuple(self._first)
