"""A bound on the processor time that a training takes, kept by resting between batches."""

from __future__ import annotations

import time
from collections.abc import Callable

_LEAST_REST_SECONDS = 0.005
"""Shorter rests are added up: waking costs more than they give."""
_MOST_CREDIT_SECONDS = 0.1
"""Unused time that may be made up for: after a long wait a training does not run unbounded."""


class CpuBudget:
    """Keeps a process within a share of the processor time that its training threads could take.

    Parameters
    ----------
    share
        From above 0 to 1, which is no bound: processor seconds ≤ ``share`` × ``threads`` × seconds passed.
    threads
        Threads that train.
    rest
        Waits so many seconds, or less if the training is to end: `threading.Event.wait`.
    cpu
        Processor seconds of the whole process, those of an engine's own threads included.
    """

    def __init__(
        self,
        share: float,
        threads: int,
        rest: Callable[[float], object],
        *,
        cpu: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._rate = share * threads
        self._rest = rest
        self._cpu = cpu
        self._clock = clock
        self._cpu_began = cpu()
        self._began = clock()

    def after_batch(self) -> None:
        """Rest for as long as the time used so far is ahead of the budget."""
        if self._share >= 1:
            return
        # Over the whole time since the beginning, so that rests too short to take add up.
        ahead = (self._cpu() - self._cpu_began) / self._rate - (self._clock() - self._began)
        if ahead >= _LEAST_REST_SECONDS:
            self._rest(ahead)
        # The beginning moves along, so that credit is forgotten rather than spent at once.
        elif ahead < -_MOST_CREDIT_SECONDS:
            self._began -= ahead + _MOST_CREDIT_SECONDS
