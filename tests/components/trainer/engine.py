"""Engines for tests of what surrounds training: one without a model, and one that can be halted within an epoch."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from fedgrass.bundle import Bundle, Parameters
from fedgrass.engines.base import Batch, Dataset, FitResult, FitSettings, FitState, Hooks, Metrics
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import DivergedError
from tests.fixtures.waiting import PATIENCE

MANY = 20
"""Epochs from which a `HeldEngine` halts."""


class QuickEngine:
    """Adds one to every parameter in each epoch.

    Only ``allowed`` epochs are done, what is over waits; ``diverge`` makes training fail; ``epochs`` lists what was done.
    """

    allowed = 1000
    diverge = False
    epochs: list[int] = []  # noqa: RUF012 - reset by each test

    @classmethod
    def reset(cls) -> None:
        cls.allowed = 1000
        cls.diverge = False
        cls.epochs = []

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self._parameters = bundle.parameters()

    def get_parameters(self) -> Parameters:
        return dict(self._parameters)

    def set_parameters(self, parameters: Parameters) -> None:
        self._parameters = dict(parameters)

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        hooks = hooks or Hooks()
        state = resume or FitState(0, self._parameters)
        while state.epoch < settings.epochs:
            hooks.after_batch(state.epoch, 1)
            while len(self.epochs) >= self.allowed:
                time.sleep(0.005)
                hooks.after_batch(state.epoch, 1)
            if self.diverge:
                raise DivergedError("the loss is nan")
            self.epochs.append(state.epoch)
            state = FitState(state.epoch + 1, {name: value + 1 for name, value in state.parameters.items()})
            hooks.after_epoch(state)
        return FitResult(dict(state.parameters), len(data), {"loss": 0.5}, settings.epochs)

    def evaluate(self, data: Dataset) -> Metrics:
        return {"loss": 0.5, "accuracy": 0.5, "examples": float(len(data))}


class HeldEngine(LiteRTEngine):
    """Halts after the first of many epochs, for as long as it lives; what resumes its checkpoint goes on to the end."""

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        hooks = hooks or Hooks()

        def held(epoch: int, step: int) -> None:
            hooks.after_batch(epoch, step)
            while resume is None and settings.epochs >= MANY and epoch > 0:
                time.sleep(0.005)
                hooks.after_batch(epoch, step)

        return super().fit(data, settings, hooks=replace(hooks, after_batch=held), resume=resume)


class HaltingEngine(LiteRTEngine):
    """Halts in batch ``halt`` of all that were done, counted from 1, until ``go`` is set; ``done`` counts them."""

    halt = 0
    done = 0
    go = threading.Event()

    @classmethod
    def reset(cls, halt: int = 0) -> None:
        cls.halt, cls.done, cls.go = halt, 0, threading.Event()

    def _step(self, batch: Batch) -> float:
        type(self).done += 1
        if self.done == self.halt:
            self.go.wait(PATIENCE)
        return super()._step(batch)
