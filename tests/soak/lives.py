"""What each process of a fleet holds, round after round, and whether it grows.

A process that was killed starts over: what is judged is the longest life of each, without its first rounds, in which
caches fill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import psutil

from tests.faults.fleet import MODULES, FaultyFleet

ACCOUNT = "local AWS"
WARM_UP_ROUNDS = 20
JUDGED_ROUNDS = 30
"""A life with fewer rounds after its warm-up is too short for a verdict."""
MB_PER_100_ROUNDS = 5.0
"""What memory may grow by, by least squares."""
ACCOUNT_MB_PER_100_ROUNDS = 100.0
"""The same of the local AWS, which has an account's records to keep: of executions, jobs, deployments and objects."""
DRIFT = 2
"""By how many files, sockets or threads the median of the last ten rounds may be over that of the first ten."""

Verdict = Literal["flat", "grows", "too short"]


@dataclass(frozen=True)
class Sample:
    """What a process holds after a round."""

    pid: int
    rss_mb: float
    files: int
    sockets: int
    threads: int


Samples = list[tuple[int, Sample]]
"""With the number of the round."""


def sample(fleet: FaultyFleet) -> dict[str, Sample]:
    """Take every long-lived process at the same time, as far as that goes."""
    found = {}
    for name, process in _processes(fleet).items():
        with suppress(psutil.Error):
            sockets = len(process.net_connections(kind="all"))
            found[name] = Sample(
                process.pid,
                process.memory_info().rss / 2**20,
                process.num_fds() - sockets,
                sockets,
                process.num_threads(),
            )
    return found


def _processes(fleet: FaultyFleet) -> dict[str, psutil.Process]:
    found: dict[str, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        found[ACCOUNT] = psutil.Process(fleet.aws.process.pid)
    for thing, device in fleet.devices.items():
        with suppress(psutil.NoSuchProcess):
            found[f"{thing} core device"] = psutil.Process(device.process.pid)
        for name in MODULES:
            if (process := fleet.process(thing, name)) is not None:
                found[f"{thing} {name.rpartition('.')[2]}"] = process
    return found


@dataclass(frozen=True)
class Life:
    """The longest life of a process after its warm-up; pairs are medians of its first and its last ten rounds.

    Attributes
    ----------
    lives
        How often the process was started.
    spread_mb
        Standard deviation of its memory about the line of growth.
    limit
        What ``mb_per_100_rounds`` may be.
    """

    lives: int
    rounds: int
    rss_mb: tuple[float, float]
    mb_per_100_rounds: float
    spread_mb: float
    files: tuple[float, float]
    sockets: tuple[float, float]
    threads: tuple[float, float]
    limit: float

    @property
    def verdict(self) -> Verdict:
        """Whether it keeps what it should let go of."""
        if self.rounds < JUDGED_ROUNDS:
            return "too short"
        drifts = any(last - first > DRIFT for first, last in (self.files, self.sockets, self.threads))
        return "grows" if drifts or self.mb_per_100_rounds > self.limit else "flat"


def life_of(samples: Samples, limit: float = MB_PER_100_ROUNDS) -> Life:
    """Look at the process that lived through most rounds."""
    lives: dict[int, Samples] = defaultdict(list)
    for number, one in samples:
        lives[one.pid].append((number, one))
    longest = max(lives.values(), key=len)
    warm = longest[WARM_UP_ROUNDS:] or longest
    numbers, taken = zip(*warm, strict=True)
    sizes = [one.rss_mb for one in taken]
    growth, base = np.polyfit(numbers, sizes, 1) if len(warm) > 1 else (0.0, sizes[0])
    return Life(
        len(lives),
        len(warm),
        _ends(sizes),
        round(float(growth) * 100, 2),
        round(float(np.std(np.array(sizes) - (base + growth * np.array(numbers)))), 2),
        _ends([one.files for one in taken]),
        _ends([one.sockets for one in taken]),
        _ends([one.threads for one in taken]),
        limit,
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return round(median(values[:10]), 1), round(median(values[-10:]), 1)
