"""Rounds that never wait, by the simulated clock: who begins with which round's base, and in which round each update arrives.

The order of events of FedBuff (Nguyen et al., AISTATS 2022, https://arxiv.org/abs/2106.06639), with devices as the trainer has
them: one that is at work when a round closes goes on, and takes the newest round afterwards. Nothing that is learnt changes it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class StreamRound:
    """One round: who ``began`` with its base, whose updates came in it, from which rounds, and how long it was open."""

    opened_at: float
    began: dict[int, float] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    arrived: list[tuple[int, int]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Stream:
    """The rounds one after the other.

    Parameters
    ----------
    asked
        Returns, for a round, the seconds that each device which it asks needs to train; infinity if it never answers.
    buffer_size, deadline
        The updates, or the seconds, after which a round ends.
    least
        With fewer updates a round changes nothing, and leaves them to the next one.
    max_age
        Rounds after its own in which an update still counts.
    """

    def __init__(
        self,
        asked: Callable[[int], Mapping[int, float]],
        *,
        buffer_size: int,
        deadline: float,
        least: int,
        max_age: int,
    ) -> None:
        self._asked = asked
        self._size = buffer_size
        self._deadline = deadline
        self._least = least
        self._max_age = max_age
        self._rounds: dict[int, StreamRound] = {}
        self._newest = 0
        self._now = 0.0
        self._at_work: dict[int, int] = {}  # the round whose base each device trains from
        self._ends: list[tuple[float, int, int]] = []  # when which device is done, and with which round
        self._waiting: list[tuple[int, int]] = []  # round and device of updates that a round left to the next one

    def round(self, number: int) -> StreamRound:
        """Return a round, with all that becomes of the devices that began with it."""
        # Until then the last of its updates has come, or is too old.
        while self._newest < number + self._max_age:
            self._next()
        return self._rounds[number]

    def _next(self) -> None:
        self._newest += 1
        number, opened = self._newest, self._now
        # A round is asked for with those that its late updates come from, and those that they go to.
        self._rounds.pop(number - 3 * self._max_age - 64, None)
        this = self._rounds[number] = StreamRound(opened)
        asked = self._asked(number)
        self._waiting = [(begun, device) for begun, device in self._waiting if number - begun <= self._max_age]
        for device in [device for device, begun in self._at_work.items() if number - begun > self._max_age]:
            del self._at_work[device]  # nobody would take its update
        for device, seconds in asked.items():
            if device not in self._at_work:
                self._begin(this, number, device, opened, seconds)
        while len(this.answers) + len(this.arrived) + len(self._waiting) < self._size and len(this.answers) < len(
            asked
        ):
            if not self._ends or self._ends[0][0] > opened + self._deadline:
                # Those that never answer are waited for until the deadline; with none of them there is nobody left.
                self._now = opened + self._deadline
                break
            self._now, device, begun = heapq.heappop(self._ends)
            # One that was too old has been dropped, and may have begun anew.
            if self._at_work.get(device) != begun:
                continue
            del self._at_work[device]
            if begun == number:
                this.answers.append(device)
                continue
            this.arrived.append((begun, device))
            if device in asked and device not in this.began:
                self._begin(this, number, device, self._now, asked[device])
        this.seconds = self._now - opened
        self._settle(this, number)

    def _begin(self, this: StreamRound, number: int, device: int, now: float, seconds: float) -> None:
        this.began[device] = seconds
        if math.isfinite(seconds):
            self._at_work[device] = number
            heapq.heappush(self._ends, (now + seconds, device, number))

    def _settle(self, this: StreamRound, number: int) -> None:
        """Give a round the updates that wait; or with too few leave them all, its own too, to the next one."""
        this.arrived = [*self._waiting, *this.arrived]
        if len(this.arrived) + len(this.answers) < self._least:
            self._waiting = [*this.arrived, *((number, device) for device in this.answers)]
            this.answers, this.arrived = [], []
        else:
            self._waiting = []
        for begun, device in this.arrived:
            self._rounds[begun].late.append(device)


def order_of(rounds: Sequence[StreamRound]) -> list[list[tuple[int, int]]]:
    """Return, for each of some rounds from the first, whose update of which round it combines."""
    return [[*((number, device) for device in one.answers), *one.arrived] for number, one in enumerate(rounds, start=1)]
