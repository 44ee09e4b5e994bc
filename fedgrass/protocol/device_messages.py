"""What a device says of itself: its heartbeat, and what its components and its application tell one another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from fedgrass.protocol.drift import Drift
from fedgrass.protocol.message import ComponentVersion, Count, LastError, Message, Metrics, Part, Reason, Tags
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName, Version


class Tally(Part):
    """What a device's trainer has done since it was installed; ``failed_in_a_row`` counts since it last took a round."""

    taken: Count = 0
    declined: Count = 0
    failed: Count = 0
    failed_in_a_row: Count = 0
    training_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class TrainerStatus(Message):
    """The trainer's state, said on the device on ``fedgrass/trainer/status`` and repeated in the heartbeat.

    ``able`` says whether it would take part in a round now, ``reason`` why not, or what became of the last one.
    ``helper_key`` is the public key of a device that is a helper of secure aggregation. ``drift`` is how far its live data are
    from the fleet's profile, where a round asked for that.
    """

    state: Literal["idle", "waiting", "training", "uploading", "declined", "failed"] = "idle"
    round: RoundNumber | None = None
    epoch: Count = 0
    epochs: Count = 0
    examples: Count = 0
    able: bool = True
    reason: Reason = ""
    component_version: ComponentVersion = ""
    helper_key: Annotated[str, Field(max_length=44)] = ""
    tally: Tally = Field(default_factory=Tally)
    drift: Drift | None = None
    last_error: LastError = ""


class Heartbeat(Message):
    """A device's health. ``able`` says whether it would train now, ``reason`` why not.

    ``trainer_runs`` is False when the trainer's process is gone or has been silent for two minutes: nobody waits for its answer
    then, as for that of one that is busy or waits for its owner's window.

    ``silent`` are the components that should have reported on the device and did not; ``errors`` the last error or
    warning of those that had one.

    ``drift`` is how far its live data are from the fleet's profile; only devices that were asked to compare have it.

    ``tags`` are what the device's configuration says of it, such as its site, by which a round can choose devices.

    ``instance`` tells this process from any other, ``up_seconds`` for how long it has run. The first heartbeat has them, and
    every tenth: by them two devices of one name are found out (`fedgrass.protocol.instances`).
    """

    fleet: FleetName
    thing: ThingName
    sent_at: AwareDatetime
    interval_seconds: float = Field(gt=0, le=86_400)
    able: bool = True
    reason: Reason = ""
    trainer_runs: bool = True
    cpu_percent: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    load: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    memory_percent: float = Field(default=0.0, ge=0, le=100)
    disk_free_bytes: Count = 0
    examples: Count = 0
    drift: Drift | None = None
    tags: Tags = Field(default={})
    model_version: Version | None = None
    trainer: TrainerStatus = Field(default_factory=TrainerStatus)
    components: Annotated[dict[Annotated[str, Field(max_length=128)], ComponentVersion], Field(max_length=16)] = Field(
        default={}
    )
    silent: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=16)] = ()
    errors: Annotated[dict[Annotated[str, Field(max_length=128)], LastError], Field(max_length=16)] = Field(default={})
    instance: Annotated[str, Field(pattern=r"^([0-9a-f]{8})?$")] = ""
    up_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class ActiveModel(Message):
    """Said on the device on ``fedgrass/model/active``: the model to use now, by its stable path.

    ``version`` is the fleet's, ``parameters_sha256`` is of what lies there: a model of the device's own may take the place of the
    fleet's within a version.
    """

    version: Version
    path: Annotated[str, Field(max_length=1024)]
    parameters_sha256: Sha256
    component_version: ComponentVersion = ""
    last_error: LastError = ""


class ApplicationStatus(Message):
    """Said on the device by the application on ``fedgrass/application/status``: how it is, and how its model does.

    ``busy`` asks the trainer to keep away, for ``valid_seconds`` at most, so that an application that died does not keep it
    away for ever. ``healthy`` is about the model of ``model_version``: False has ModelDeployer go back to the one before.
    """

    busy: bool = False
    valid_seconds: float = Field(default=60, gt=0, le=86_400)
    model_version: Version | None = None
    healthy: bool = True
    reason: Reason = ""


class AdmissionNotice(Message):
    """Said on the device by a model's admission script to ModelDeployer, which tells both sides."""

    version: Version
    outcome: Literal["active", "refused"]
    reason: Reason = ""
    metrics: Metrics = Field(default={})
