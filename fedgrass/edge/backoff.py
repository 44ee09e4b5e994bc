"""How long to wait before trying again: doubling, bounded, and jittered so that a fleet does not try in step."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds: ``first``, then twice as long each time, at most ``most``; each is cut by up to half at random."""

    def __init__(self, *, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def failed(self) -> float:
        """Count a failure; returns the seconds to wait."""
        # The exponent is bounded because 2.0 ** 1024 raises OverflowError, which a device that is offline for some
        # hours would reach.
        delay = min(self._most, self._first * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret

    def succeeded(self) -> None:
        """Start over."""
        self._failures = 0
