"""What the child does for a round: train and write the update, or evaluate."""

from __future__ import annotations

import time

from components.trainer.task import KEYS, Result
from components.trainer.workspace import Workspace
from fedgrass.bundle import Bundle
from fedgrass.edge.memory import require_memory
from fedgrass.edge.system import available_bytes
from fedgrass.engines.base import Hooks
from fedgrass.errors import DataError
from fedgrass.evaluating import evaluate
from fedgrass.protocol.messages import Announcement
from fedgrass.training import TrainingFiles, holding, train


def work_on(announcement: Announcement, place: Workspace) -> Result:
    """Do a round's task; raises what reading, training and writing do."""
    bundle = place.bundle(announcement.base, announcement.upload.bucket)
    if announcement.task == "statistics":
        return _measure(announcement, place, bundle)
    if announcement.task == "evaluate":
        return _evaluate(announcement, place, bundle)
    return _train(announcement, place, bundle)


def _measure(announcement: Announcement, place: Workspace, bundle: Bundle) -> Result:
    from fedgrass.profile import device

    named = device.task_of(announcement).profile
    earlier = place.profile(named, announcement.upload.bucket) if named is not None else None
    place.log.log_event("measuring_started", base=bundle.manifest.version)
    examples = place.split(bundle, keep_missing=True).train
    began = time.monotonic()
    found = device.measure(
        place.paced(examples),
        bundle.manifest,
        announcement,
        place.task.thing,
        place.task.update,
        earlier,
        keys=place.file(KEYS),
    )
    return Result(
        status="done",
        sha256=found.info.sha256,
        bytes=found.info.bytes,
        num_examples=found.num_examples,
        seconds=round(time.monotonic() - began, 3),
    )


def _evaluate(announcement: Announcement, place: Workspace, bundle: Bundle) -> Result:
    split = place.split(bundle)
    place.log.log_event("evaluation_started", examples=len(split.validation), model=bundle.manifest.version)
    compared = place.bundle(announcement.compare, announcement.upload.bucket) if announcement.compare else None
    found = evaluate(
        holding(place.engine(bundle), bundle, place.own(bundle)),
        split,
        place.own(compared).over(compared.parameters()) if compared else None,
    )
    return Result(
        status="done",
        num_examples=found.num_examples,
        metrics=found.metrics,
        sums=found.sums,
        base_sums=found.base_sums,
    )


def _train(announcement: Announcement, place: Workspace, bundle: Bundle) -> Result:
    task = place.task
    # Before the data are read: they may take long, and the answer would be the same.
    require_memory(bundle.manifest, available_bytes())
    split = place.split(bundle)
    task.floors.require(split.train, announcement.fit, bundle.manifest)
    examples = len(split.train)
    # The cloud goes by the last heartbeat; this is the count at hand.
    if examples < announcement.cohort.min_examples:
        raise DataError(f"{examples} examples to train on; the round wants {announcement.cohort.min_examples} at least")
    place.log.log_event("training_started", examples=examples, base=bundle.manifest.version)
    place.progressed(0, examples)
    trained = train(
        lambda: place.engine(bundle),
        bundle,
        split,
        announcement,
        task.thing,
        TrainingFiles(
            task.update,
            task.checkpoint,
            task.residual,
            place.control(announcement, bundle),
            own=place.store.device.own,
            personal=place.store.device.personal,
            keys=place.file(KEYS),
        ),
        ending=place.ending(split.train, announcement, bundle.manifest.batch_size),
        hooks=Hooks(place.after_batch, lambda state: place.progressed(state.epoch, examples)),
    )
    return Result(
        status="done",
        sha256=trained.info.sha256,
        bytes=trained.info.bytes,
        num_examples=trained.num_examples,
        metrics=trained.metrics,
        seconds=trained.seconds,
    )
