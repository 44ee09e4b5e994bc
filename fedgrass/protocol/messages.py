"""The MQTT and local messages. Each is UTF-8 JSON of at most 4,096 bytes, published as a binary message.

The bound is nucleus lite's: beyond it the connection or the subscription is dropped without a word. Unknown fields are
ignored, so that old devices survive new clouds.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from fedgrass.errors import MessageError, first_problem
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName, Version, parameters_key
from fedgrass.protocol.secure import SecureTask
from fedgrass.protocol.sums import MAX_TEXT

MAX_MESSAGE_BYTES = 4096

M = TypeVar("M", bound="Message")

Reason = Annotated[str, Field(max_length=500)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MOST_METRICS, LONGEST_METRIC = 16, 40
"""How many figures a message holds, and the letters of the longest name."""
Metrics = Annotated[dict[Annotated[str, Field(max_length=LONGEST_METRIC)], Finite], Field(max_length=MOST_METRICS)]
ClassWeights = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)],
    ],
    Field(max_length=64),
]
ConfigName = Annotated[str, Field(min_length=1, max_length=64)]
_Int = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]


def _no_whole_number(value: object) -> object:
    if isinstance(value, int):
        raise ValueError("expected a number with a decimal point, or all of them whole numbers below 2^63")
    return value


_Float = Annotated[StrictFloat, BeforeValidator(_no_whole_number), Field(allow_inf_nan=False)]
_Str = Annotated[StrictStr, Field(max_length=200)]
ConfigValue = StrictBool | _Int | _Float | _Str | list[StrictBool] | list[_Int] | list[_Float] | list[_Str]
SumsText = Annotated[str, Field(max_length=MAX_TEXT)]
TagName = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]{0,31}$")]
TagValue = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,40}$")]
Tags = Annotated[dict[TagName, TagValue], Field(max_length=8)]
Where = Annotated[
    dict[TagName, Annotated[tuple[TagValue, ...], Field(min_length=1, max_length=8)]], Field(max_length=4)
]
ComponentVersion = Annotated[str, Field(max_length=64)]
LastError = Annotated[str, Field(max_length=200)]
CommandId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ObjectKey = Annotated[str, Field(min_length=1, max_length=1024)]


def as_reason(text: str, most: int = 500) -> str:
    """Cut a text to what a `Reason` holds; bytes of a file name that are not text become question marks.

    Parameters
    ----------
    most
        Bytes that it may take in a message: a letter takes up to four there, a control character six.
    """
    text = text.encode(errors="replace").decode()[:most]
    taken = 0
    for index, letter in enumerate(text):
        taken += len(json.dumps(letter, ensure_ascii=False).encode()) - 2
        if taken > most:
            return text[:index]
    return text


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class Message(Part):
    """Base of every message: ``schema`` is 1 until a change that old readers could not survive."""

    schema_: Literal[1] = Field(default=1, alias="schema")

    def encode(self) -> bytes:
        """Return the message's bytes; raises `MessageError` if they pass the bound."""
        payload = self.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageError(
                f"{type(self).__name__}: {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} reach every nucleus. "
                "Put what is larger into S3 and name it by key and digest"
            )
        return payload

    @classmethod
    def decode(cls: type[M], payload: bytes) -> M:
        """Read a message; raises `MessageError` naming the field that is wrong."""
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageError(f"{cls.__name__}: {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are accepted")
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise MessageError(f"{cls.__name__}: {first_problem(error)}") from error


class ModelIdentity(Protocol):
    """Whatever says which model it is about: a bundle's manifest, a report's entry, a base."""

    @property
    def version(self) -> str:
        """Version of the model."""

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the file of parameters, in hex."""

    @property
    def graph_sha256(self) -> str:
        """SHA-256 of the training graph, in hex."""


class ServerState(Part):
    """The state of a round's strategy that lies beside the model it made, as ``server.safetensors``."""

    strategy: str = Field(max_length=200)
    sha256: Sha256


class Base(Part):
    """The model that a round starts from. Its other files lie beside ``parameters_key``."""

    version: Version
    parameters_key: ObjectKey
    parameters_sha256: Sha256
    graph_sha256: Sha256
    state: ServerState | None = None

    @classmethod
    def of(cls, model: ModelIdentity, fleet: str, state: ServerState | None = None) -> Base:
        """Name a model as the rounds of a fleet start from it, under the fleet's models in the bucket."""
        return cls(
            version=model.version,
            parameters_key=parameters_key(fleet, model.version),
            parameters_sha256=model.parameters_sha256,
            graph_sha256=model.graph_sha256,
            state=state,
        )

    def names(self, model: ModelIdentity) -> bool:
        """Whether this is the model: the same version, parameters and graph."""
        found = (model.version, model.parameters_sha256, model.graph_sha256)
        return found == (self.version, self.parameters_sha256, self.graph_sha256)


class Cohort(Part):
    """Who is asked: see `fedgrass.protocol.cohort`."""

    salt: str = Field(min_length=1, max_length=64)
    fraction: float = Field(default=1.0, gt=0, le=1)
    begin: float = Field(default=0.0, ge=0, lt=1)
    where: Where = {}
    min_examples: Count = 0
    fair: bool = False


class FitTask(Part):
    """How each device trains. The size of a batch is the model's: its bundle fixes it."""

    epochs: int = Field(default=1, ge=1, le=10_000)
    learning_rate: float | None = Field(
        default=None, gt=0, le=100, allow_inf_nan=False, description="None: the model's own, by its optimizer"
    )
    proximal_mu: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
    gradient_clip_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    class_weight: Literal["balanced"] | ClassWeights | None = Field(
        default=None,
        description="What an example's loss is times, by its class's name or number; balanced: by each device's own data",
    )
    max_examples: int | None = Field(default=None, ge=1)
    control: Literal["scaffold", "feddyn"] | None = Field(
        default=None, description="What devices keep from round to round, and train with; the strategy sets it"
    )
    config: Annotated[dict[ConfigName, ConfigValue], Field(max_length=32)] = Field(
        default={},
        description="For Flower's clients, in their config beside server_round: bools, whole numbers, floats, text, and lists "
        "of one kind",
    )


class UpdateTask(Part):
    """How each device encodes its update. 0 switches clipping or noise off."""

    codec: str = Field(default="float32", max_length=40)
    clip_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    noise_multiplier: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    figures: Literal["exact", "left_out"] = Field(
        default="exact",
        description="left_out: a device's count of examples, its metrics and its training's time go with no update",
    )

    @property
    def hides_figures(self) -> bool:
        """Whether no figure of the device's data goes beside its update: the noise on it would hide nothing then."""
        return self.noise_multiplier > 0 or self.figures == "left_out"


class Upload(Part):
    """Where a round's updates go: ``prefix`` + thing name + ``/update.safetensors``."""

    bucket: str = Field(min_length=3, max_length=63)
    prefix: ObjectKey


class SumTask(Part):
    """Which set of devices the helpers of secure aggregation are to sum the masks of.

    ``requests`` holds, by helper, the SHA-256 of the object that names the set to it
    (`fedgrass.protocol.names.sum_request_key`); ``digest`` is the set's.
    """

    digest: Sha256
    requests: Annotated[dict[ThingName, Sha256], Field(max_length=5)]


class Announcement(Message):
    """The open round: retained on ``fedgrass/<fleet>/round``; an empty payload means that no round is open.

    An evaluation may name a second model to ``compare`` with, to be evaluated on the same examples. ``sum`` is for helpers of
    secure aggregation: to the others the round is closed.

    ``opened_at`` and ``deadline`` are the cloud's clock. A device whose own clock is wrong takes part all the same: the
    cloud judges lateness.
    """

    fleet: FleetName
    round: RoundNumber
    task: Literal["fit", "evaluate", "sum"] = "fit"
    opened_at: AwareDatetime
    deadline: AwareDatetime
    base: Base
    compare: Base | None = None
    cohort: Cohort
    fit: FitTask = FitTask()
    update: UpdateTask = UpdateTask()
    secure: SecureTask | None = None
    sums: SumTask | None = None
    upload: Upload


class UpdateNotice(Message):
    """A device's answer to a round: ``uploaded`` (the object is in S3), ``evaluated`` (see the metrics), or why there is none.

    ``opened_at`` is that of the announcement it answers, and says which of a round's tasks is meant: the round itself, or the
    evaluation of its model before the release. ``sums`` are what the figures of an evaluation are made of
    (`fedgrass.protocol.sums`), ``base_sums`` those of the model that it is compared with.
    """

    fleet: FleetName
    round: RoundNumber
    thing: ThingName
    opened_at: AwareDatetime | None = None
    status: Literal["uploaded", "evaluated", "declined", "failed"]
    reason: Reason = ""
    key: ObjectKey | None = None
    sha256: Sha256 | None = None
    bytes: Count = 0
    num_examples: Count = 0
    metrics: Metrics = {}
    sums: SumsText | None = None
    base_sums: SumsText | None = None
    seconds_train: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class ModelNotice(Message):
    """What became of a model on a device. ``active_version`` is what the device runs after it."""

    fleet: FleetName
    thing: ThingName
    version: Version
    outcome: Literal["active", "refused", "rolled_back"]
    reason: Reason = ""
    active_version: Version | None = None
    metrics: Metrics = {}


class Command(Message):
    """An order to one device, on its ``command`` topic. Each id is answered once, on ``reply``; see docs/reference/device.md.

    ``get_parameters`` and ``fit`` upload what they give; ``set_parameters`` takes ``base``, ``fit`` and ``evaluate`` may;
    ``roll_back`` takes ``version`` or means the model before; ``sum``, for a helper of secure aggregation, takes ``key`` and
    ``sha256`` of what it is to sum. A kind that a device does not know is refused.
    """

    fleet: FleetName
    thing: ThingName
    id: CommandId
    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    bucket: Annotated[str, Field(max_length=63)] = ""
    key: ObjectKey | None = None
    sha256: Sha256 | None = None
    base: Base | None = None
    fit: FitTask = FitTask()
    version: Version | None = None
    reason: Reason = ""


class Reply(Message):
    """A device's one answer to a command. ``key`` names the safetensors file of parameters, where the command gives some."""

    fleet: FleetName
    thing: ThingName
    id: CommandId
    kind: Annotated[str, Field(max_length=40)]
    status: Literal["done", "refused", "failed"]
    reason: Reason = ""
    version: Version | None = None
    bucket: Annotated[str, Field(max_length=63)] | None = None
    key: ObjectKey | None = None
    sha256: Sha256 | None = None
    bytes: Count = 0
    num_examples: Count = 0
    metrics: Metrics = {}
    seconds_train: float = Field(default=0.0, ge=0, allow_inf_nan=False)


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
    ``helper_key`` is the public key of a device that is a helper of secure aggregation.
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
    tally: Tally = Tally()
    last_error: LastError = ""


class Heartbeat(Message):
    """A device's health. ``able`` says whether it would train now, ``reason`` why not.

    ``trainer_runs`` is False when the trainer's process is gone or has been silent for two minutes: nobody waits for its answer
    then, as for that of one that is busy or waits for its owner's window.

    ``silent`` are the components that should have reported on the device and did not; ``errors`` the last error or
    warning of those that had one.

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
    tags: Tags = {}
    model_version: Version | None = None
    trainer: TrainerStatus = TrainerStatus()
    components: Annotated[dict[Annotated[str, Field(max_length=128)], ComponentVersion], Field(max_length=16)] = {}
    silent: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=16)] = ()
    errors: Annotated[dict[Annotated[str, Field(max_length=128)], LastError], Field(max_length=16)] = {}
    instance: Annotated[str, Field(pattern=r"^([0-9a-f]{8})?$")] = ""
    up_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class ActiveModel(Message):
    """Said on the device on ``fedgrass/model/active``: the model to use now, by its stable path."""

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
    metrics: Metrics = {}
