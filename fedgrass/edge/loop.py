"""A component's own thread: whatever arrives from SDK threads, timers and signals is done here, one thing at a time."""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections.abc import Callable

Action = Callable[[], None]


class Loop:
    """Runs posted actions and timers on the thread that calls `run`, until `stop`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # SimpleQueue, because its put may be called from a signal handler that interrupts its get.
        self._inbox: queue.SimpleQueue[Action] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        # None while it runs. Set by a posted action only, so that what was posted before a stop is still done.
        self._exit_code: int | None = None

    def post(self, action: Action) -> None:
        """Have ``action`` done soon; from any thread or signal handler."""
        self._inbox.put(action)

    def later(self, seconds: float, action: Action) -> None:
        """Have ``action`` done once, after ``seconds``; from the loop's thread only."""
        # The number keeps equal times in order, as functions cannot be compared.
        heapq.heappush(self._timers, (self._clock() + seconds, next(self._order), action))

    def every(self, seconds: Callable[[], float], action: Action) -> None:
        """Do ``action`` again and again; ``seconds`` is asked each time, so that it can change."""

        # The next time counts from the end of the action: one that takes long does not pile up behind itself.
        def again() -> None:
            action()
            self.later(seconds(), again)

        self.later(seconds(), again)

    def stop(self, exit_code: int = 0) -> None:
        """End `run` after the action at hand; the first code given wins."""

        def end() -> None:
            if self._exit_code is None:
                self._exit_code = exit_code

        self.post(end)

    def run(self) -> int:
        """Work until stopped; returns the exit code."""
        while self._exit_code is None:
            self.step(block=True)
        return self._exit_code

    def step(self, *, block: bool = False) -> bool:
        """Do one timer that is due, or one posted action; ``block`` waits for it. Returns whether there was one."""
        # Timers go first: a flood of messages must not keep the heartbeat from its turn.
        if self._timers and self._timers[0][0] <= self._clock():
            heapq.heappop(self._timers)[2]()
            return True
        wait = max(0.0, self._timers[0][0] - self._clock()) if self._timers else None
        try:
            action = self._inbox.get(block=block, timeout=wait if block else None)
        except queue.Empty:
            return False
        action()
        return True
