"""What a strategy's arithmetic is made of: clip → weight → combine → server optimizer, each a small object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Bundle
from fedgrass.noise import Grid
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats

Sums = NDArray[np.float32] | NDArray[np.float64]

State = dict[str, Array]
"""A server optimizer's vectors, by name: all zeros before the first round. A `Continued` combination has others, of any kind."""


@dataclass(frozen=True)
class UpdateMetadata:
    """What is known of an update beside its values. ``age`` counts the models that came after its base.

    ``ages`` are those of all updates that its device has in this round, this one's among them; empty where it has no other.

    ``norm`` is the L2 norm of the difference; None while it has not been read yet.
    """

    thing: str
    num_examples: int
    metrics: Mapping[str, float]
    age: int = 0
    ages: tuple[int, ...] = ()
    norm: float | None = None

    def measured(self, norm: float) -> UpdateMetadata:
        """Return the same with the norm."""
        return UpdateMetadata(
            self.thing, self.num_examples, self.metrics, self.age, self.ages, norm
        )  # faster than `replace`

    def claiming(self, name: str, value: float) -> UpdateMetadata:
        """Return the same with another value of a metric."""
        if self.metrics.get(name) == value:
            return self
        metrics = {**self.metrics, name: value}
        return UpdateMetadata(self.thing, self.num_examples, metrics, self.age, self.ages, self.norm)


class Clip(Protocol):
    """Bounds how far one update can pull."""

    def bound(self, norms: Sequence[float]) -> float:
        """Return the L2 norm to which longer updates are scaled down."""
        ...


class Weighting(Protocol):
    """How much each update counts.

    ``is_mean`` says whether no more than one is shared out: weights times scale never sum to more.
    """

    @property
    def is_mean(self) -> bool:
        """Whether it is."""
        ...

    def weight(self, facts: UpdateMetadata) -> float:
        """Return what the update's values are multiplied by in the sum; the norm may be missing.

        Raises
        ------
        UpdateError
            Coded ``missing_metric`` if the update does not say what the weight depends on.
        """
        ...

    def scale(self, facts: Sequence[UpdateMetadata]) -> float:
        """Return what the sum is multiplied by in the end."""
        ...


@runtime_checkable
class ClaimWeighting(Weighting, Protocol):
    """A weighting by a metric, which is a device's claim: the cohort's median bounds it, as it bounds examples."""

    def believed(self, facts: Sequence[UpdateMetadata], factor: float) -> Sequence[UpdateMetadata]:
        """Return all updates of a round with the metrics that weigh, which are claims, bounded by ``factor`` and the median.

        Raises
        ------
        UpdateError
            Coded ``missing_metric``.
        """
        ...


class UpdateMatrix(Protocol):
    """The good updates as a matrix in storage, one row each, and the model that they are differences from."""

    @property
    def base(self) -> Bundle:
        """Return the model."""
        ...

    @property
    def facts(self) -> Sequence[UpdateMetadata]:
        """Return what is known of each row."""
        ...

    def tiles(self) -> Sequence[slice]:
        """Return the columns' division, made so that a tile of all rows fits the memory bound."""
        ...

    def read(self, columns: slice, chosen: Sequence[int] | None = None) -> Floats:
        """Return a new array [rows, columns] of all rows or the chosen ones; threads may call it at the same time."""
        ...


class Combination(Protocol):
    """A combination that needs to see all updates at once."""

    def combine(self, rows: UpdateMatrix, out: Floats) -> Sequence[float]:
        """Write the combined difference to ``out``; returns each row's share in it.

        Raises
        ------
        AggregationError
            If there are too few rows for the number of attackers that is to be withstood.
        """
        ...


class Continued(Combination, Protocol):
    """A combination that goes on from round to round.

    Before it combines it is told the round's number, why devices failed, and the state that the round which made the base left;
    afterwards ``state`` is what the next round is to start from.
    """

    round: int
    failures: Sequence[str]
    state: State


class ServerOptimizer(Protocol):
    """Turns the combined difference (a pseudo-gradient) into the next parameters."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of its state's vectors."""
        ...

    def step(self, delta: Floats, state: State) -> Floats:
        """Return the change of the parameters for a tile; ``state`` holds the same tile of each slot, changed in place."""
        ...


@runtime_checkable
class RoundOptimizer(ServerOptimizer, Protocol):
    """A server optimizer that depends on who took part."""

    def in_round(self, facts: Sequence[UpdateMetadata], devices: int) -> ServerOptimizer:
        """Return the optimizer of a round.

        Parameters
        ----------
        facts
            What is known of each update that counts.
        devices
            How many devices there are, asked or not; 0 if none but these.
        """
        ...


class Noise(Protocol):
    """Central differential privacy."""

    @property
    def clip_norm(self) -> float:
        """Return the L2 norm that no update may exceed."""
        ...

    @property
    def grid(self) -> Grid:
        """Return the steps in which clipped differences are added up."""
        ...

    def add_to(self, total: NDArray[np.uint16] | NDArray[np.uint32], deviation: int) -> None:
        """Add noise of a deviation, in steps, to a sum of integers modulo two to their width, in place."""
        ...

    def noised_mean(self, total: Sums, count: int) -> Floats:
        """Return the mean of ``count`` clipped differences with noise; ``total`` is their sum in steps, overwritten."""
        ...
