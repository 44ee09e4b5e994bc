"""Bounds on the length of a single update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low


def median_norm(norms: Sequence[float]) -> float:
    """Return the median of the norms that are not zero; 0 if all are.

    Of an even number the lower of the two in the middle: of two updates the longer one then has no say in its own bound.
    """
    moved = [norm for norm in norms if norm > 0]
    return median_low(moved) if moved else 0.0


@dataclass(frozen=True)
class ClipToNorm:
    """Scale updates down to a fixed L2 norm."""

    norm: float

    def bound(self, _norms: Sequence[float]) -> float:
        """Return the fixed norm."""
        return self.norm


@dataclass(frozen=True)
class ClipToMedian:
    """Scale updates down to a multiple of the cohort's median norm: less than half of the devices cannot move it far."""

    factor: float

    def bound(self, norms: Sequence[float]) -> float:
        """Return the multiple."""
        return self.factor * median_norm(norms)
