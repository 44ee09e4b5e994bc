"""A participant's training as a round announces it, in memory: from the parameters that an engine holds to what its update says.

`fedgrass.training` adds what outlives the process; simulation does without.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fedgrass.bundle import Manifest, Parameters
from fedgrass.control import STEP_LENGTH, require_linear, step_length
from fedgrass.data import Split
from fedgrass.engines.base import Batch, Dataset, Engine, FitResult, FitSettings, FitState, Hooks, Metrics
from fedgrass.errors import EngineError, NoFiguresError
from fedgrass.own_code import own_code
from fedgrass.partial import PLANNED, STEPS, Ending
from fedgrass.personal_models import Personal
from fedgrass.protocol.message import LONGEST_METRIC, MOST_METRICS
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.metrics import others
from fedgrass.update.header import UpdateHeader


def seed_of(announcement: Announcement, thing: str) -> int:
    """Seed of a device's training in a round: the first 4 bytes of SHA-256 over ``fleet/round/thing``.

    So a training that is repeated gives the same update, and no two devices shuffle alike.
    """
    text = f"{announcement.fleet}/{announcement.round}/{thing}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Fitted:
    """What a device has learnt, and what its update will say of itself; ``num_examples`` are the true ones."""

    parameters: Parameters
    header: UpdateHeader
    num_examples: int = 1


def fit(
    engine: Engine,
    manifest: Manifest,
    data: Split,
    announcement: Announcement,
    thing: str,
    *,
    hooks: Hooks | None = None,
    ending: Ending | None = None,
    resume: FitState | None = None,
    correction: Parameters | None = None,
    personal: Personal | None = None,
) -> Fitted:
    """Train as announced, from the base that the engine holds; nothing is written.

    Parameters
    ----------
    engine
        Holds the base's parameters.
    manifest
        Of the base.
    data
        The device's examples.
    announcement
        The round: how to train.
    thing
        Name of this participant.
    hooks
        Called after batches and epochs; ``after_batch`` may raise `StopTraining`.
    ending
        When the training is over before its end; an engine that trains in one call goes on to the end.
    resume
        Where an earlier process came to in this very training.
    correction
        What the round's strategy adds to the gradient (`fedgrass.control`).
    personal
        What the device makes for itself in the same round, and where it keeps it.

    Returns
    -------
    Fitted
        The parameters, and the header of the update. Where the update will have noise or masks, the header has no figures.

    Raises
    ------
    DataError
        If there are no examples, or they do not fit the model.
    DivergedError
        If the training did.
    EngineError
        If the engine, the model or its optimizer does not go with what the round asks.
    StopTraining
        If a hook did.
    """
    rate = announcement.fit.learning_rate or manifest.optimizer.rate
    _require_control(engine, manifest, announcement)
    _require_turns(engine, manifest, announcement)
    settings = settings_of(announcement, manifest, thing, correction)
    examples, base, figures = _limited(data.train, announcement.fit.max_examples), {}, {}
    if personal is not None:
        personal.require(engine)
        base, figures = engine.get_parameters(), personal.judged(engine, data.validation, "base")
    if ending is not None and getattr(engine, "takes_end", False):
        hooks = ending.over(hooks or Hooks(keep=False))
    with own_code("training"):
        result = engine.fit(examples, settings, hooks=hooks, resume=resume)
    # Of two turns, those that moved what is shared: each goes through the same batches.
    steps = result.steps * settings.epochs // settings.all_epochs
    found = {STEPS: float(steps)}
    if result.planned:
        found[PLANNED] = float(result.planned)
    if announcement.fit.control == "scaffold":
        found[STEP_LENGTH] = step_length(manifest.optimizer, rate, steps)
    metrics, num_examples = _measured(engine, data, result, found), result.num_examples
    if personal is not None:
        figures |= personal.trained(engine, examples, data.validation, settings, base, result)
        metrics = _with_first(metrics, figures)
    if announcement.update.hides_figures or announcement.secure is not None:
        # Noise, or masks, hide the update; exact figures beside it would give away what they hide.
        metrics, num_examples = {}, 1
    header = UpdateHeader(
        fleet=announcement.fleet,
        round=announcement.round,
        thing=thing,
        base_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
        num_examples=num_examples,
        metrics=metrics,
    )
    return Fitted(result.parameters, header, result.num_examples)


def settings_of(
    announcement: Announcement, manifest: Manifest, thing: str, correction: Parameters | None = None
) -> FitSettings:
    """Return how a participant is to train; the parameters are as of `fit`."""
    return FitSettings(
        epochs=announcement.fit.epochs,
        learning_rate=announcement.fit.learning_rate or manifest.optimizer.rate,
        proximal_mu=announcement.fit.proximal_mu,
        clip_norm=announcement.fit.gradient_clip_norm,
        seed=seed_of(announcement, thing),
        class_weight=announcement.fit.class_weight,
        correction=correction,
        local_epochs=announcement.fit.local_epochs,
        round=announcement.round,
        config=announcement.fit.config,
    )


def _require_control(engine: Engine, manifest: Manifest, announcement: Announcement) -> None:
    control = announcement.fit.control
    if control is not None and not getattr(engine, "takes_correction", False):
        raise EngineError(
            f"strategy {control}: this device's engine cannot add to a gradient; use litert, keras or torch, or another strategy"
        )
    if control == "scaffold":
        require_linear(manifest.optimizer)


def _require_turns(engine: Engine, manifest: Manifest, announcement: Announcement) -> None:
    turns = announcement.fit.local_epochs
    if turns and manifest.shares_all:
        raise EngineError(
            f"fit.local_epochs {turns}: model {manifest.name!r} has no parameters that devices keep for themselves; export it "
            "with --local, or set 0"
        )
    if turns and not getattr(engine, "takes_start", False):
        raise EngineError(
            f"fit.local_epochs {turns}: this device's engine trains in one call; use litert, keras, torch or sklearn, or set 0"
        )


def _with_first(metrics: Metrics, figures: Metrics) -> Metrics:
    """Return metrics with some figures after the first, the steps; of too many the last are left out."""
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    (first, *rest) = metrics.items()
    return dict([first, *finite.items(), *rest][:MOST_METRICS])


def _measured(engine: Engine, data: Split, result: FitResult, found: Metrics) -> Metrics:
    """How the training went, and how the trained model does on the held-back examples, if the device has any.

    ``found`` comes first: ``steps`` of the whole training, over restarts, by which FedNova weighs.
    """
    judged: Metrics = {}
    if len(data.validation):
        with suppress(NoFiguresError), own_code("evaluating"):
            judged = engine.evaluate(data.validation)
        found |= {f"validation_{name}": judged[name] for name in ("loss", "accuracy") if name in judged}
    found |= {
        name: value for name, value in result.metrics.items() if name not in found and len(name) <= LONGEST_METRIC
    }
    found |= {f"validation_{name}": value for name, value in others(judged).items()}
    finite = [(name, value) for name, value in found.items() if math.isfinite(value)]
    return dict(finite[:MOST_METRICS])  # a Flower client may have any number of its own


def _limited(data: Dataset, most: int | None) -> Dataset:
    return data if most is None or len(data) <= most else _Limited(data, most)


class _Limited:
    """At most so many examples of each pass; with a seed, others in each epoch."""

    def __init__(self, data: Dataset, most: int) -> None:
        self._data = data
        self._most = most

    def __len__(self) -> int:
        return self._most

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        left = self._most
        for batch in self._data.batches(batch_size, seed=seed):
            yield batch.first(left)
            left -= len(batch.x)
            if left <= 0:
                return
