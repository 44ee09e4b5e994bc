"""What the child does for a command of the operator's."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from components.trainer.task import HELPER, Result
from components.trainer.workspace import Workspace
from fedgrass import tensors
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.edge.commands import answer_name
from fedgrass.engines.base import FitSettings, Hooks, Metrics
from fedgrass.errors import DataError, MessageError
from fedgrass.files import copy_atomically, sha256_of, write_atomically
from fedgrass.personal import shared_of
from fedgrass.protocol.messages import Base, Command
from fedgrass.protocol.names import model_prefix, sum_prefix
from fedgrass.training import holding

_MOST_METRICS, _LONGEST_NAME = 16, 40


class _Set(BaseModel):
    """The model that the operator set, in force until another is."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    base: Base
    bucket: str


def do(command: Command, place: Workspace) -> Result:
    """Do a command; raises `MessageError` if it cannot be done as it is, and what reading and training do."""
    if command.kind == "sum":
        return _sum(command, place)
    bundle = _model(command, place)
    version = bundle.manifest.version
    if command.kind == "set_parameters" and command.base is not None:
        # A model that was set stays in force for later commands, so it is checked whole once.
        bundle.verify()
        write_atomically(_set(place), _Set(base=command.base, bucket=command.bucket).model_dump_json().encode())
        return Result(status="done", version=version, sha256=bundle.manifest.parameters_sha256)
    file = place.file(f"{answer_name(command.id)}.safetensors")
    if command.kind == "get_parameters":
        copy_atomically(bundle.path(PARAMETERS), file)
        return _given(file, version)
    engine, split = holding(place.engine(bundle), bundle, place.own(bundle)), place.split(bundle)
    if command.kind == "evaluate":
        if len(split.validation) == 0:
            raise DataError("no examples are held back for validation (validationFraction)")
        found = _bounded(engine.evaluate(split.validation))
        return Result(status="done", version=version, metrics=found, num_examples=len(split.validation))
    # The owner's least holds for commands too: an operator could otherwise ask for one example's update.
    place.task.floors.require(split.train, command.fit, bundle.manifest)
    # Waits, or stops, before the engine takes memory.
    place.after_batch(0, 0)
    began = time.monotonic()
    result = engine.fit(
        split.train,
        FitSettings(
            epochs=command.fit.epochs,
            learning_rate=command.fit.learning_rate or bundle.manifest.optimizer.rate,
            proximal_mu=command.fit.proximal_mu,
            clip_norm=command.fit.gradient_clip_norm,
            class_weight=command.fit.class_weight,
            # By the id: a command that is repeated after a kill gives the same parameters.
            seed=int.from_bytes(hashlib.sha256(command.id.encode()).digest()[:4], "big"),
        ),
        hooks=Hooks(place.after_batch),
    )
    # What the device keeps for itself does not leave it: in its place is what the model came with.
    came = {} if bundle.manifest.shares_all else bundle.parameters()
    tensors.save(file, {**came, **shared_of(bundle.manifest, result.parameters)})
    learnt = {"num_examples": result.num_examples, "metrics": _bounded(result.metrics)}
    return _given(file, version).model_copy(update={**learnt, "seconds": round(time.monotonic() - began, 3)})


def _sum(command: Command, place: Workspace) -> Result:
    """Sum the masks of a set of devices, or say which boxes open; raises `MessageError` if this helper is not to."""
    # Not every device has the library that it needs.
    from fedgrass.secure.helper import Helper, HelperLimits
    from fedgrass.secure.request import MAX_REQUEST_BYTES

    settings, fleet = place.task.settings, place.task.runtime.fleet
    # The prefix is the fleet's own: a command must not have the device read any object that its role can.
    if command.key is None or command.sha256 is None or not command.key.startswith(sum_prefix(fleet)):
        raise MessageError(f"sum: expected key, under {sum_prefix(fleet)}, and sha256")
    request = place.file("sum-request.json")
    place.fetch(command.bucket, command.key, request, sha256=command.sha256, most=MAX_REQUEST_BYTES)
    helper = Helper(place.file(HELPER), fleet, HelperLimits(settings.helper_min_devices, settings.helper_known_seconds))
    file = place.file(f"{answer_name(command.id)}.safetensors")
    began = time.monotonic()
    sha256 = helper.respond(request.read_bytes(), file, after_piece=lambda: place.after_batch(0, 0))
    seconds = round(time.monotonic() - began, 3)
    return Result(status="done", sha256=sha256, bytes=file.stat().st_size, seconds=seconds)


def _model(command: Command, place: Workspace) -> Bundle:
    """Return the model that a command is about: the one it names, else the one that was set, else the active one."""
    named = _Set(base=command.base, bucket=command.bucket) if command.base is not None else _read(_set(place))
    if named is None:
        active = place.store.active()
        if active is None:
            raise MessageError(f"{command.kind}: no model is active on this device, and base names none")
        return active
    if not named.base.parameters_key.startswith(model_prefix(place.task.runtime.fleet, named.base.version)):
        raise MessageError("base.parameters_key is not under the fleet's models")
    return place.bundle(named.base, named.bucket)


def _given(file: Path, version: str) -> Result:
    return Result(status="done", version=version, sha256=sha256_of(file), bytes=file.stat().st_size)


def _bounded(metrics: Metrics) -> Metrics:
    """Return what a message holds of them: a user's own engine may have any number."""
    finite = [(name, value) for name, value in metrics.items() if math.isfinite(value) and len(name) <= _LONGEST_NAME]
    return dict(finite[:_MOST_METRICS])


def _set(place: Workspace) -> Path:
    return place.file("parameters-set.json")


def _read(path: Path) -> _Set | None:
    try:
        return _Set.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
