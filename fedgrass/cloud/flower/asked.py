"""What a strategy of Flower's asks of a fleet in a round, and what it is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedgrass.bundle import Parameters

Figures = Mapping[str, Any]
"""Metrics by name, as a strategy gives them."""


@dataclass(frozen=True)
class Asked:
    """How many devices a strategy wants to ask, and the configuration that each of them is sent."""

    devices: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Reported:
    """What one device reported."""

    thing: str
    num_examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Answers:
    """What devices said in a round; ``failures`` are the reasons of those that failed or declined."""

    reported: Sequence[Reported]
    failures: Sequence[str] = ()


@dataclass
class Found:
    """What came of an app's rounds: the last model, and figures by the app's own round numbers."""

    parameters: Parameters = field(default_factory=dict)
    trained: dict[int, Figures] = field(default_factory=dict)
    evaluated: dict[int, Figures] = field(default_factory=dict)
    judged: dict[int, Figures] = field(default_factory=dict)


class App(Protocol):
    """A strategy with what it was started with; of either of Flower's trees."""

    strategy: Any
    rounds: int
    seconds: float | None
    """How long it waits for devices; None: as long as the fleet's settings say."""

    def initial(self) -> Parameters:
        """Return the model to begin with."""
        ...

    def train(self, number: int, parameters: Parameters) -> Asked | None:
        """Ask the strategy whom it has train, and how; None if nobody."""
        ...

    def evaluate(self, number: int, parameters: Parameters) -> Asked | None:
        """Ask the strategy whom it has evaluate, and how; None if nobody."""
        ...

    def trained(self, number: int, answers: Answers) -> Figures | None:
        """Have the app's own function aggregate what devices report of their training."""
        ...

    def evaluated(self, number: int, answers: Answers) -> Figures | None:
        """Have the strategy aggregate what devices found."""
        ...

    def judged(self, number: int, parameters: Parameters) -> Figures | None:
        """Have the app's own function evaluate a model, here."""
        ...

    def result(self, found: Found) -> Any:
        """Return what the app is given when its rounds are done."""
        ...
