"""Devices choose among several models, as in IFCA: which has the least loss on the examples that a device trains on.

The iterative federated clustering algorithm (Ghosh et al. 2020, https://arxiv.org/abs/2006.04088): in each round every device
judges all models, and trains the best; the cloud averages each model's updates. The first models have to differ, and each group
should find one that is its own. Here they are what single devices make of the bundle's, chosen as the greedy k-means++ chooses
its first centres (Arthur and Vassilvitskii 2007): of some devices, drawn by how badly the models so far fit them, that one whose
model leaves least loss on all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle, Parameters
from fedgrass.engines.base import Dataset, Metrics
from fedgrass.engines.flower_node import PARTITION, PARTITIONS, Node, join
from fedgrass.errors import DataError, EngineError, FedgrassError
from fedgrass.own_code import own_code
from fedgrass.personal import Own
from fedgrass.protocol.messages import Announcement
from fedgrass.simulation.model import in_folder
from fedgrass.simulation.population import thing_name
from fedgrass.simulation.virtual_device import Assignment, own_file
from fedgrass.simulation.worker import Bench, Folders
from fedgrass.simulation.worker_pool import WorkerPool

_SEEDS = 11  # sets the draws of first models apart from the other draws of a simulation
_LONGER = (
    4  # times the epochs of a round: a single device's model is otherwise hardly better for its like than for others
)
_TRIED = 10  # devices whose models are tried for each first model but the first
_WORST = 1e9

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What some devices found: losses [devices, models], infinite where a model gives none."""

    devices: Sequence[int]
    losses: Losses


@dataclass(frozen=True)
class Judging:
    """Some devices judge models on the examples that they train on; a model's folders are those of its rounds."""

    models: Sequence[Folders]
    devices: Sequence[int]

    def answer(self, bench: Bench) -> Judged:
        """Judge them, model after model: an engine takes parameters once for all devices that have none of their own."""
        losses = np.full((len(self.devices), len(self.models)), math.inf)
        for column, folders in enumerate(self.models):
            parameters, _ = tensors.load(folders.base / PARAMETERS)
            for row, device in enumerate(self.devices):
                _hold(bench, device, parameters, folders)
                losses[row, column] = _loss(bench, bench.examples.of(device))
        return Judged(self.devices, losses)


@dataclass(frozen=True)
class Figures:
    """What devices' models are like on the examples that they keep back, by device."""

    by_device: dict[int, Metrics]


@dataclass(frozen=True)
class KeptBack:
    """Some devices judge a model, the group's, on what they keep back."""

    model: Folders
    devices: Sequence[int]

    def answer(self, bench: Bench) -> Figures:
        """Judge it."""
        parameters, _ = tensors.load(self.model.base / PARAMETERS)
        found = {}
        for device in self.devices:
            if len(examples := bench.examples.held_back(device)):
                _hold(bench, device, parameters, self.model)
                with own_code("evaluating"):
                    found[device] = bench.engine.evaluate(examples)
        return Figures(found)


@dataclass(frozen=True)
class Trained:
    """The devices that could train."""

    devices: Sequence[int]


@dataclass(frozen=True)
class Training:
    """Some devices train the bundle's model as a round has it; what each learns goes into a folder of its own."""

    devices: Sequence[int]
    announcement: Announcement
    scratch: Path

    def answer(self, bench: Bench) -> Trained:
        """Train."""
        given = Assignment(tensors.load(self.scratch / PARAMETERS)[0], bench.manifest, self.announcement)
        virtual, done = bench.devices(self.scratch), []
        for device in self.devices:
            examples, held_back = bench.examples.of(device), bench.examples.held_back(device)
            with suppress(FedgrassError):
                fitted = virtual.train(device, examples, given, None, held_back)
                folder = _folders(self.scratch, device).base
                folder.mkdir()
                in_folder(bench.manifest, fitted.parameters, folder, version=bench.manifest.version)
                done.append(device)
        return Trained(done)


def judged(pool: WorkerPool, models: Sequence[Folders], devices: Sequence[int]) -> Losses:
    """Return what each device finds each model's loss to be [devices, models]; the number of processes does not matter."""
    shares = _shares(pool, devices)
    answers = pool.each([Judging(models, share) for share in shares], Judged)
    rows = dict(pair for answer in answers for pair in zip(answer.devices, answer.losses, strict=True))
    return np.array([rows[device] for device in devices]).reshape(len(devices), len(models))


def figures(pool: WorkerPool, model: Folders, devices: Sequence[int]) -> dict[int, Metrics]:
    """Return each device's figures of a model on what it keeps back; of those that keep something back."""
    answers = pool.each([KeptBack(model, share) for share in _shares(pool, devices)], Figures)
    return {device: found for answer in answers for device, found in answer.by_device.items()}


def first_models(
    pool: WorkerPool,
    announcement: Announcement,
    base: Bundle,
    devices: Sequence[int],
    *,
    count: int,
    seed: int,
    scratch: Path,
) -> list[Parameters]:
    """Return the models that clusters start from.

    Parameters
    ----------
    pool
        What trains.
    announcement
        The first round's: devices train by it, four times as long.
    base
        The bundle.
    devices
        Those that answer in the first round.
    count
        How many models.
    seed
        Of the draws.
    scratch
        A new folder, for the models meanwhile.

    Raises
    ------
    EngineError
        If no device can train.
    """
    scratch.mkdir()
    in_folder(base.manifest, base.parameters(), scratch, version=base.manifest.version)
    fit = announcement.fit
    longer = fit.model_copy(update={"epochs": _LONGER * fit.epochs, "local_epochs": _LONGER * fit.local_epochs})
    seeds = _Seeds(pool, announcement.model_copy(update={"fit": longer}), devices, scratch)
    draws, nearest = np.random.default_rng((seed, _SEEDS)), np.ones(len(devices))
    chosen: list[int] = []
    while len(chosen) < count and (left := [device for device in devices if device not in seeds.spent]):
        weights = np.array([nearest[devices.index(device)] for device in left])
        found = seeds.losses(_drawn(left, weights, draws, most=_TRIED if chosen else 1))
        if found:
            rest = {device: np.minimum(nearest, losses) if chosen else losses for device, losses in found.items()}
            best = min(rest, key=lambda device: float(rest[device].sum()))
            chosen, nearest = [*chosen, best], rest[best]
            seeds.spent.add(best)
    if not chosen:
        raise EngineError("clusters: no device of the first round could train; try the simulation without clusters")
    models = [tensors.load(_folders(scratch, device).base / PARAMETERS)[0] for device in chosen]
    # Fewer devices than models: the others start as the bundle's model, and wait for whom it fits best.
    return [*models, *[base.parameters()] * (count - len(models))]


@dataclass
class _Seeds:
    """Devices' models and what all devices find of them, each trained once; those that cannot train are ``spent``."""

    pool: WorkerPool
    announcement: Announcement
    devices: Sequence[int]
    scratch: Path
    spent: set[int] = field(default_factory=set)
    _known: dict[int, Losses] = field(default_factory=dict)

    def losses(self, wanted: Sequence[int]) -> dict[int, Losses]:
        """Return of some devices' models, in order, the loss on each device's examples."""
        missing = [device for device in wanted if device not in self._known]
        requests = [Training(share, self.announcement, self.scratch) for share in _shares(self.pool, missing)]
        trained = {device for answer in self.pool.each(requests, Trained) for device in answer.devices}
        self.spent |= set(missing) - trained
        new = [device for device in missing if device in trained]
        if new:
            found = judged(self.pool, [_folders(self.scratch, device) for device in new], self.devices)
            # Of a model that gives no number for somebody: worse than any that does.
            self._known |= zip(new, np.where(np.isfinite(found), found, _WORST).T, strict=True)
        return {device: self._known[device] for device in wanted if device in self._known}


def _drawn(left: Sequence[int], weights: Losses, draws: np.random.Generator, *, most: int) -> list[int]:
    """Return some different devices, drawn by their weights; in ascending order."""
    shares = np.maximum(weights, 1e-12)
    some = draws.choice(len(left), min(most, len(left)), replace=False, p=shares / shares.sum())
    return [left[int(at)] for at in np.sort(some)]


def _folders(scratch: Path, device: int) -> Folders:
    return Folders(scratch / f"model-{device}", scratch)


def _shares(pool: WorkerPool, devices: Collection[int]) -> list[list[int]]:
    processes = len(pool.process_ids)
    return [list(devices)[at::processes] for at in range(processes)]


def _hold(bench: Bench, device: int, parameters: Parameters, folders: Folders) -> None:
    """Have the engine be a device with a model: its own parameters over the shared ones."""
    own = Own.of(bench.manifest, own_file(folders.kept, device), durable=False)
    bench.engine.set_parameters(own.over(parameters))
    thing = thing_name(device)
    join(
        bench.engine,
        Node(thing, {PARTITION: device, PARTITIONS: bench.simulation.devices}, folders.kept / "flower" / thing),
    )


def _loss(bench: Bench, examples: Dataset) -> float:
    """Return a loss; infinity where the model gives no number, which no device would choose."""
    try:
        with own_code("evaluating"):
            loss = bench.engine.evaluate(examples)["loss"]
    except DataError:  # a device without examples
        return math.inf
    return loss if math.isfinite(loss) else math.inf
