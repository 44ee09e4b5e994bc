"""What every training engine offers: Flower's four verbs on plain NumPy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from fedgrass.bundle import Parameters
from fedgrass.own_code import Passing
from fedgrass.protocol.sums import Sums
from fedgrass.tensors import Array

Metrics = dict[str, float]
"""Named scalars that travel with an update or an evaluation (``loss``, ``accuracy``, …)."""


class Measured(dict[str, float]):
    """Figures of an evaluation, and the sums that they are made of, where an engine counts them: those of a fleet are added."""

    def __init__(self, metrics: Metrics, sums: Sums | None = None) -> None:
        super().__init__(metrics)
        self.sums = sums


@dataclass(frozen=True)
class Batch:
    """One batch: ``x`` [n, …] and ``y`` [n, …] with n ≤ the batch size asked for.

    ``weights`` [n] float32 are what each example's loss is times in training (None: 1). ``anomaly`` [n] says of evaluation data
    which examples are known to be none of the normal ones.
    """

    x: Array
    y: Array
    weights: Array | None = None
    anomaly: Array | None = None

    def first(self, count: int) -> Batch:
        """Return the first ``count`` examples."""
        parts = (None if part is None else part[:count] for part in (self.weights, self.anomaly))
        return Batch(self.x[:count], self.y[:count], *parts)


class Dataset(Protocol):
    """Examples that can be read any number of times, in bounded memory."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Yield every example once; shuffled by ``seed``, in stored order without one; the last batch may be short."""
        ...


@dataclass(frozen=True)
class FitSettings:
    """One round's local training.

    ``class_weight``: what each example's loss is times, by its class (`fedgrass.engines.weights`).

    ``correction``: what is added to the gradient in every step, by parameter; for engines whose class says ``takes_correction``.

    ``start``: where the training begins, if not at the parameters that the proximal term holds it to. ``local_epochs``: so many
    epochs first train the local parameters alone, and the others then the shared alone (FedRep; Collins et al. 2021,
    https://arxiv.org/abs/2102.07078). Both are for engines whose class says ``takes_start``.

    ``round`` and ``config`` are for clients that are told of them, Flower's: the round's number, and what the operator adds.

    ``seed`` and the epoch's number fix the order of examples, so that a resumed run equals an unbroken one.
    """

    epochs: int = 1
    learning_rate: float = 0.1
    proximal_mu: float = 0.0
    clip_norm: float = 0.0
    seed: int = 0
    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    correction: Mapping[str, Array] | None = None
    start: Mapping[str, Array] | None = None
    local_epochs: int = 0
    round: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_epochs(self) -> int:
        """How often the examples are gone through."""
        return self.local_epochs + self.epochs

    def epoch_seed(self, epoch: int) -> int:
        """Seed of one epoch's order of examples; every engine takes it from here."""
        # Hashed rather than added: with seed + epoch, a device's second epoch would have the order of its neighbour's
        # first.
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()[:4], "big")

    def seeded(self, seed: int) -> FitSettings:
        """Return the same with another seed."""
        own = object.__new__(FitSettings)  # `replace` takes as long as half a step of a small model
        own.__dict__.update(self.__dict__, seed=seed)
        return own

    def masks_seed(self) -> int:
        """Where the numbers that Dropout draws from begin, so that they are others in each round and on each device."""
        # Shifted into 31 bits, because the graph's input for it is an int32.
        return int(np.random.SeedSequence(self.seed).generate_state(1)[0]) >> 1


@dataclass
class FitState:
    """Where a training stands between two batches: enough to go on after a restart.

    ``epoch`` counts the whole epochs done, ``losses`` has one entry for each. Of the epoch that has begun, ``step`` batches are
    done, over whose examples ``loss_sum`` sums the loss. ``steps`` counts the batches of all epochs. ``ended``: the training goes
    no further (`EndTraining`).
    """

    epoch: int
    parameters: Mapping[str, Array]
    optimizer: list[Array] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step: int = 0
    loss_sum: float = 0.0
    steps: int = 0
    ended: bool = False


@dataclass(frozen=True)
class FitResult:
    """What a training gave. ``metrics`` holds at least ``loss`` (mean over the last epoch); ``steps`` counts over restarts.

    ``planned`` is how many steps it would have had, if a hook ended it before; else 0.
    """

    parameters: Parameters
    num_examples: int
    metrics: Metrics
    steps: int
    planned: int = 0


class StopTraining(Passing):
    """Raised by a hook to end a training between two batches; see `Hooks.stopped`."""


class EndTraining(Passing):
    """Raised by `Hooks.after_batch` to end a training with what it has come to, which is then its result.

    Only for engines whose class says ``takes_end``.
    """


@dataclass(frozen=True)
class Hooks:
    """Called by `Engine.fit` on its own thread.

    ``after_batch(epoch, step)`` may sleep (throttling, pausing) or raise `StopTraining` or `EndTraining`. ``after_epoch(state)``
    is where checkpoints are written, and so is ``stopped(state)``, which follows either of them.

    ``keep``: whether the hooks, and whoever has the result, keep its arrays. If not, an engine may lend its own, which hold until
    it is called again: a copy of a large model's parameters is memory that a small device lacks.
    """

    after_batch: Callable[[int, int], None] = lambda epoch, step: None
    after_epoch: Callable[[FitState], None] = lambda state: None
    stopped: Callable[[FitState], None] = lambda state: None
    keep: bool = True


class Engine(Protocol):
    """A model that can be trained. One engine holds one model; it is not thread-safe."""

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        ...

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        ...

    def fit(
        self, data: Dataset, settings: FitSettings, *, hooks: Hooks | None = None, resume: FitState | None = None
    ) -> FitResult:
        """Train from the present parameters; the result is the parameters after the last epoch.

        Parameters
        ----------
        data
            The examples.
        settings
            Epochs, rates and the seed of the shuffling.
        hooks
            Called after batches and epochs.
        resume
            Continues a training that began from the present parameters: its state is taken over, and the epochs and
            batches already done are skipped.

        Returns
        -------
        FitResult
            The parameters, and how the training went.

        Raises
        ------
        DataError
            If the data are empty or do not fit the model; raised before training starts.
        DivergedError
            If the loss stops being finite; the parameters are then what they were before.
        """
        ...

    def evaluate(self, data: Dataset) -> Metrics:
        """Return ``loss`` (mean), ``examples``, and what `fedgrass.protocol.metrics` names of a model of its kind.

        `Measured` carries the sums besides; plain figures are averaged over a fleet's devices.
        """
        ...


@dataclass(frozen=True)
class PlainFit:
    """What one of many trainings gave: ``values`` [n] are all parameters in a row, in the manifest's order; they may be lent.

    ``loss`` and ``steps`` are as of `FitResult`.
    """

    values: Array
    loss: float
    steps: int


@runtime_checkable
class FitsEach(Protocol):
    """An engine that trains many devices from the same parameters for less than so many calls of `Engine.fit`."""

    def fit_each(self, base: Parameters, devices: Iterable[tuple[Batch, FitSettings]]) -> Iterator[PlainFit | None]:
        """Train from the same parameters on one device's examples after another's.

        Parameters
        ----------
        base
            Where each training begins.
        devices
            Each device's examples, checked and without weights, and its settings: without ``class_weight``, ``correction``,
            ``start``, ``local_epochs`` and a schedule.

        Yields
        ------
        PlainFit or None
            To the byte what `Engine.fit` makes of the same; None for a training that diverged, of which `fit` says how.
        """
        ...
