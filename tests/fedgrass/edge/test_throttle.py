"""The bound on a training's processor time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.edge.throttle import CpuBudget
from fedgrass.engines.base import FitSettings, Hooks
from fedgrass.engines.litert import LiteRTEngine

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "bundle"


class Machine:
    """Clocks that go on only when something works or rests."""

    def __init__(self) -> None:
        self.cpu = self.wall = self.rested = 0.0

    def budget(self, share: float, threads: int = 1) -> CpuBudget:
        return CpuBudget(share, threads, self.rest, cpu=lambda: self.cpu, clock=lambda: self.wall)

    def work(self, seconds: float, threads: int = 1) -> None:
        self.cpu += seconds * threads
        self.wall += seconds

    def rest(self, seconds: float) -> None:
        self.wall += seconds
        self.rested += seconds


@given(
    share=st.floats(0.05, 0.99),
    threads=st.integers(1, 4),
    batches=st.lists(st.floats(1e-4, 0.5), min_size=20, max_size=60),
)
def test_the_share_is_kept_and_used_up_whatever_batches_take(share: float, threads: int, batches: list[float]) -> None:
    machine = Machine()
    budget = machine.budget(share, threads)
    for seconds in batches:
        machine.work(seconds, threads)
        budget.after_batch()
        assert machine.cpu <= share * threads * (machine.wall + 0.005) + 1e-9
    assert machine.cpu >= share * threads * (machine.wall - 0.005) - 1e-9


def test_a_training_that_waited_for_long_does_not_make_up_for_it() -> None:
    machine = Machine()
    budget = machine.budget(0.5)
    machine.wall += 3600
    budget.after_batch()
    for _ in range(100):
        machine.work(0.1)
        budget.after_batch()
    assert machine.rested == pytest.approx(10, abs=0.2)


def test_a_whole_budget_never_rests() -> None:
    machine = Machine()
    budget = machine.budget(1.0)
    machine.work(5, threads=4)
    budget.after_batch()
    assert machine.rested == 0


def test_a_real_training_takes_its_share_of_the_processor() -> None:
    engine = LiteRTEngine(Bundle.open(DIGITS))
    data = ArrayDataset(np.zeros((800, 8, 8, 1), np.float32), np.zeros(800, np.int32))
    cpu, wall = time.process_time(), time.monotonic()
    budget = CpuBudget(0.3, 1, time.sleep)
    epochs = 0
    while epochs < 2 or time.process_time() - cpu < 0.5:
        engine.fit(data, FitSettings(), hooks=Hooks(after_batch=lambda epoch, step: budget.after_batch()))
        epochs += 1
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    # A loaded machine gives it less, never more.
    assert share <= 0.3 * 1.1
