"""One device's part in a round: train from the announced base, and write the difference as an update file.

The same code runs wherever a participant runs: on a core device, in a silo's training job, and in simulation.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgrass import checkpoints
from fedgrass.answer import Answer
from fedgrass.bundle import Bundle
from fedgrass.control import STEP_LENGTH, Control, ControlFiles
from fedgrass.data import Split
from fedgrass.engines.base import Engine, FitState, Hooks, Metrics
from fedgrass.errors import ConfigurationError
from fedgrass.fitting import fit
from fedgrass.partial import Ending
from fedgrass.personal import Own, shared_manifest, shared_of
from fedgrass.personal_models import Personal, PersonalModels
from fedgrass.protocol.messages import Announcement
from fedgrass.tensors import Array
from fedgrass.update.feedback import ErrorFeedback
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import UpdateInfo, write_update


@dataclass(frozen=True)
class Trained:
    """A written update. ``seconds`` is the time spent training, over all restarts."""

    info: UpdateInfo
    num_examples: int
    metrics: Metrics
    seconds: float

    @property
    def answer(self) -> Answer:
        """What the cloud is told."""
        return Answer(
            "uploaded",
            sha256=self.info.sha256,
            bytes=self.info.bytes,
            num_examples=self.num_examples,
            metrics=self.metrics,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class TrainingFiles:
    """Where a participant's training leaves what outlives its process.

    Attributes
    ----------
    update
        File to write.
    checkpoint
        File that is written after each epoch, and where a hook stopped the training; it is the caller's to delete when the
        update is safe.
    residual
        File that keeps what a lossy codec leaves out for this device's next update (`ErrorFeedback`); None keeps nothing.
    control
        What strategies such as ``scaffold`` keep and need (`fedgrass.control`); None: this participant trains without.
    own
        File of this participant's own parameters (`fedgrass.personal`); None: it starts from the base's each time.
    personal
        Folder of this participant's own models (`fedgrass.personal_models`); None: it has none.
    keys
        Folder of the device's signing key, which a round with secure aggregation needs.
    """

    update: Path
    checkpoint: Path
    residual: Path | None = None
    control: ControlFiles | None = None
    own: Path | None = None
    personal: Path | None = None
    keys: Path | None = None


def train(
    open_engine: Callable[[], Engine],
    base: Bundle,
    data: Split,
    announcement: Announcement,
    thing: str,
    files: TrainingFiles,
    *,
    hooks: Hooks | None = None,
    ending: Ending | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train and write the update file; a training that was ended goes on from its checkpoint, to the same result.

    Parameters
    ----------
    open_engine
        Makes an engine that holds the parameters of ``base``; it is gone before the update is written, and its memory with it.
    base
        The model that the round starts from, which the update is a difference from.
    data
        The device's examples: it trains on ``data.train``, and measures the result on ``data.validation`` if there are any.
    announcement
        The round: how to train, and how to encode the update.
    thing
        Name of this participant. With fleet and round it seeds the shuffling, so that no two devices shuffle alike.
    files
        Where update, checkpoint and residual are.
    hooks
        Called besides: ``after_batch`` may raise `StopTraining`.
    ending
        When the training is over before its end, and the update is of what was done; None: never.
    clock
        Seconds that only go up; they are counted over restarts.

    Returns
    -------
    Trained
        What was written, and what the cloud is told of it.

    Raises
    ------
    DataError
        If there are no examples, or they do not fit the model.
    DivergedError
        If the training did; the update was not written.
    StopTraining
        If a hook did; the checkpoint stays.
    """
    hooks = hooks or Hooks()
    # Over the whole announcement: a checkpoint made with other settings is not gone on with.
    identity = hashlib.sha256(announcement.encode() + thing.encode()).hexdigest()
    manifest = base.manifest
    control = Control.of(announcement, manifest, files.control, identity)
    own = Own.of(manifest, files.own, identity)
    models = PersonalModels(files.personal, manifest, identity) if files.personal else None
    personal = Personal.of(announcement.personal, models, hooks.after_batch)
    earlier = checkpoints.load(files.checkpoint, identity)
    # As if it had begun earlier, so that times add up over restarts.
    started = clock() - (earlier.seconds if earlier else 0.0)

    def saved_then(hook: Callable[[FitState], None]) -> Callable[[FitState], None]:
        def save(state: FitState) -> None:
            checkpoints.save(files.checkpoint, identity, state, clock() - started)
            hook(state)

        return save

    fitted = fit(
        holding(open_engine(), base, own),
        manifest,
        data,
        announcement,
        thing,
        hooks=Hooks(
            hooks.after_batch, saved_then(hooks.after_epoch), saved_then(hooks.stopped), keep=personal is not None
        ),
        ending=ending,
        resume=earlier.state if earlier else None,
        correction=control.correction if control else None,
        personal=personal,
    )
    seconds = clock() - started
    last = checkpoints.load(files.checkpoint, identity)
    # Tensor by tensor from the disk, if the engine told of each epoch: a large model is then not in memory twice.
    epochs = announcement.fit.local_epochs + announcement.fit.epochs
    kept = last is not None and (last.state.ended or last.state.epoch >= epochs)
    local = last.state.parameters if last is not None and kept else fitted.parameters
    header, examples = fitted.header, fitted.num_examples
    del fitted  # with what its engine lends, and so with the engine
    # Both states are kept before the update is written: a kill in between repeats the round from the former ones.
    own.keep(local)
    if control is not None:
        control.keep(base.stored_parameters(), local, header.metrics.get(STEP_LENGTH, 1.0))
    # What this device keeps for itself is in no update.
    shared, local = shared_of(manifest, base.stored_parameters()), shared_of(manifest, local)
    if announcement.secure is not None:
        info = _write_masked(files, shared, local, header, examples, announcement)
        return Trained(info, header.num_examples, header.metrics, seconds)
    info = write_update(
        files.update,
        shared,
        local,
        header,
        announcement.update,
        feedback=ErrorFeedback(files.residual, shared_manifest(manifest), identity) if files.residual else None,
    )
    return Trained(info, header.num_examples, header.metrics, seconds)


def holding(engine: Engine, bundle: Bundle, own: Own) -> Engine:
    """Return an engine that was made with a model, with this participant's own parameters in it.

    Parameters
    ----------
    engine
        The engine.
    bundle
        The model that it was made with.
    own
        The participant's own parameters; without any, nothing is set.

    Returns
    -------
    Engine
        The same engine.
    """
    if own.values:
        engine.set_parameters(own.over(bundle.parameters()))
    return engine


def _write_masked(
    files: TrainingFiles,
    base: Mapping[str, Array],
    local: Mapping[str, Array],
    header: UpdateHeader,
    examples: int,
    announcement: Announcement,
) -> UpdateInfo:
    # Not every device has the library that it needs.
    from fedgrass.secure.device import context_of, masked, signing_key

    if files.keys is None or announcement.secure is None:
        raise ConfigurationError("secure: this participant has no folder for a key, so it cannot mask its update")
    update = masked(
        base,
        local,
        header,
        examples,
        announcement.secure,
        context_of(announcement),
        signing_key(files.keys),
        clip_norm=announcement.update.clip_norm,
    )
    sha256 = update.save(files.update)
    return UpdateInfo(sha256, files.update.stat().st_size, 0.0)
