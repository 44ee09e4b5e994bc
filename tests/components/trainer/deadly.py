"""Engines that die in each way in which one can, for tests of who outlives them."""

from __future__ import annotations

import os
import resource
import signal
import time

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.engines.base import Dataset, FitResult, FitSettings, FitState, Hooks
from tests.components.trainer.engine import QuickEngine


class Segfault(QuickEngine):
    """Dies as native code does."""

    signal = signal.SIGSEGV

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        return self.die(data, settings, hooks, resume)

    def die(self, data: Dataset, settings: FitSettings, hooks: Hooks | None, resume: FitState | None) -> FitResult:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), self.signal)
        raise AssertionError("it lives")


class Hungry(Segfault):
    """Is refused memory."""

    def die(self, data: Dataset, settings: FitSettings, hooks: Hooks | None, resume: FitState | None) -> FitResult:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        np.ones(1 << 32, np.float64)
        raise AssertionError("it was given")


class DiesOnce(Segfault):
    """Dies after the second epoch, unless it goes on from a checkpoint."""

    def die(self, data: Dataset, settings: FitSettings, hooks: Hooks | None, resume: FitState | None) -> FitResult:
        hooks = hooks or Hooks()
        if resume is None:
            QuickEngine.fit(self, data, FitSettings(epochs=2), hooks=hooks)
            os.kill(os.getpid(), self.signal)
        return QuickEngine.fit(self, data, settings, hooks=hooks, resume=resume)


class Hangs(Segfault):
    """Never ends its batch."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        super().__init__(bundle, threads=threads)

    def die(self, data: Dataset, settings: FitSettings, hooks: Hooks | None, resume: FitState | None) -> FitResult:
        (hooks or Hooks()).after_batch(0, 1)
        while True:
            time.sleep(1)


def loads_and_dies(*_: object) -> None:
    """Kill whoever loads the data."""
    os.kill(os.getpid(), signal.SIGBUS)
