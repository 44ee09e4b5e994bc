"""What the child does for a model that became active: fine-tune this device's own copy, and choose what the application loads.

Nothing of it is in any update: rounds start from the fleet's model, which stays as it is, and from the parameters that this
device keeps for itself (`fedgrass.personal`), which are read and not written.
"""

from __future__ import annotations

import hashlib
import shutil

from components.trainer.task import FINE_TUNING, Activated, Result
from components.trainer.workspace import Workspace
from fedgrass import checkpoints
from fedgrass.bundle import Bundle, Parameters
from fedgrass.data import Split
from fedgrass.edge.admit import scores_of
from fedgrass.edge.device_models import FLEET
from fedgrass.edge.judging import Case, Judgement, judge_here
from fedgrass.edge.memory import require_memory
from fedgrass.edge.system import available_bytes
from fedgrass.engines.base import FitSettings, FitState, Hooks, Metrics
from fedgrass.errors import AdmissionError, DataError, DivergedError
from fedgrass.own_code import own_code
from fedgrass.personal import write_personal
from fedgrass.personal_models import TUNED, PersonalModels
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.messages import FitTask
from fedgrass.training import holding

# Measured beside a training, they would say nothing of the model.
_COSTS = frozenset({"latency_ms", "memory_mb"})


def fine_tune(asked: Activated, place: Workspace) -> Result:
    """Fine-tune, judge and choose; raises what reading, training and writing do.

    Returns
    -------
    Result
        ``done`` with the figures of each model and, in words, which was chosen; ``stopped`` if another model is active by now;
        ``given_up`` if the training diverged, as it would again.
    """
    active, task = place.store.active(), place.task
    if active is None or not asked.is_still(active):
        return Result(status="stopped")
    require_memory(active.manifest, available_bytes())
    split = place.split(active)
    fit = FitTask(epochs=task.settings.fine_tune_epochs, learning_rate=task.settings.fine_tune_learning_rate)
    task.floors.require(split.train, fit, active.manifest)
    # What nobody can compare with the fleet's is not worth a training.
    if not len(split.validation):
        raise DataError("no examples are held back for validation (validationFraction)")
    place.log.log_event("fine_tuning_started", version=asked.version, examples=len(split.train))
    place.after_batch(0, 0)
    try:
        tuned = _trained(asked, active, split, fit, place)
    except DivergedError as error:
        return Result(status="declined", given_up=True, reason=as_reason(str(error)))
    judgement = _judged(asked, active, tuned, place)
    with place.store.lock():
        # It may have been taken back, or have a successor, since the training began.
        if not asked.is_still(place.store.active()):
            return Result(status="stopped")
        kept = PersonalModels(place.store.device.personal, active.manifest, asked.mark).kept(TUNED)
        kept.path.parent.mkdir(parents=True, exist_ok=True)
        kept.keep({}, tuned)
        place.store.activate(active, judgement.chosen, scores=scores_of(active, judgement, asked.deployer) or None)
    chosen = (
        judgement.why_chosen or "the application loads the fleet's model, as none of this device's own is better here"
    )
    metrics = {name: value for name, value in judgement.metrics.items() if name not in _COSTS}
    return Result(status="done", reason=as_reason(f"fine-tuned: {chosen}"), metrics=metrics)


def _trained(asked: Activated, active: Bundle, split: Split, fit: FitTask, place: Workspace) -> Parameters:
    manifest, own = active.manifest, place.own(active)
    seed = hashlib.sha256(f"{place.task.runtime.fleet}/{asked.version}/{place.task.thing}".encode()).digest()
    settings = FitSettings(
        epochs=fit.epochs,
        learning_rate=fit.learning_rate or manifest.optimizer.rate,
        seed=int.from_bytes(seed[:4], "big"),
    )
    path = place.file(FINE_TUNING)
    identity = hashlib.sha256(f"{asked.mark} {settings!r}".encode()).hexdigest()
    earlier = checkpoints.load(path, identity)

    def save(state: FitState) -> None:
        checkpoints.save(path, identity, state, 0.0)

    with own_code("training"):
        found = holding(place.engine(active), active, own).fit(
            split.train,
            settings,
            hooks=Hooks(place.after_batch, save, save),
            resume=earlier.state if earlier else None,
        )
    return found.parameters


def _judged(asked: Activated, active: Bundle, tuned: Parameters, place: Workspace) -> Judgement:
    """Judge all that this device has for the active model as its admission did; raises `AdmissionError` without figures."""
    # Not in the store, whose lock an admission may want meanwhile. One folder, so that a kill leaves no more than this.
    folder = place.file("fine-tuned")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        own = place.own(active).values
        fleets = write_personal(active, own, folder / FLEET) if own else active
        models = PersonalModels(place.store.device.personal, active.manifest).read() | {TUNED: tuned}
        # It was admitted: what it takes of the device is not asked again.
        deployer = asked.deployer.model_copy(update={"max_latency_ms": 0.0, "max_memory_mb": 0.0})
        case = Case(
            candidate=fleets.folder,
            active=None,
            own={kind: write_personal(active, values, folder / kind).folder for kind, values in models.items()},
            builders=place.task.builders,
            runtime=place.task.runtime,
            deployer=deployer,
        )
        judgement = judge_here(case, place.log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not judgement.admitted or not _tells(judgement.metrics):
        raise AdmissionError(f"model {asked.version} cannot be compared with this device's own: {judgement.reason}")
    return judgement


def _tells(metrics: Metrics) -> bool:
    return any(name.startswith(f"{TUNED}_") for name in metrics)
