"""What a strategy is: started with the base, fed one known-good update at a time, asked for the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedgrass.update.codecs import Floats

BLOCK = 1 << 16  # scalars: as float64 they are half a megabyte, which stays in a core's cache


@dataclass(frozen=True)
class Update:
    """An update that passed every check.

    ``values`` is the difference as one flat vector. It is valid until the next update is examined: a strategy that
    needs it later must copy it.
    """

    thing: str
    num_examples: int
    norm: float
    values: Floats

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield (first scalar, values) in blocks that fit a core's cache."""
        for start in range(0, len(self.values), BLOCK):
            yield start, self.values[start : start + BLOCK]


@dataclass(frozen=True)
class Aggregate:
    """A strategy's result: the new parameters as a flat vector, and each thing's share in them (summing to 1)."""

    vector: Floats
    weights: Mapping[str, float]


class Strategy(Protocol):
    """Combines updates in memory that does not grow with their number. Updates come in the order of thing names."""

    @property
    def name(self) -> str:
        """Name in settings and reports."""
        ...

    def start(self, base: Floats) -> None:
        """Begin a round from these parameters (a flat float32 vector, not changed)."""
        ...

    def add(self, update: Update) -> None:
        """Take one update in."""
        ...

    def finish(self) -> Aggregate:
        """Return the new parameters; at least one update was added."""
        ...
