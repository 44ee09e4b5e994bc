"""What the cloud and a device say to each other about a round, a model and a command.

What all messages have in common is in `fedgrass.protocol.message`; the device's state is in `fedgrass.protocol.device_messages`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import AwareDatetime, Field

from fedgrass.protocol.message import (
    ClassWeights,
    CommandId,
    ConfigName,
    ConfigValue,
    Count,
    Finite,
    Message,
    Metrics,
    ObjectKey,
    Part,
    Reason,
    SumsText,
    Where,
)
from fedgrass.protocol.names import FleetName, RoundNumber, Sha256, ThingName, Version, parameters_key
from fedgrass.protocol.profile import ProfileReference, StatisticsTask
from fedgrass.protocol.secure import SecureTask


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
        """Name a model as the rounds of a fleet start from it, under the fleet's models in the bucket.

        Parameters
        ----------
        model
            Its version and digests.
        fleet
            The fleet's name.
        state
            What the strategy keeps beside it, if anything.
        """
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


class ByLoss(Part):
    """Which of a cohort's lots are in: those below ``explore`` from its beginning; of the others, devices of at least that loss.

    It is the one that the device's last update before this round had, if that was not before round ``since``.
    """

    explore: float = Field(ge=0, le=1)
    loss: Finite
    since: RoundNumber


class Cohort(Part):
    """Who is asked: see `fedgrass.protocol.cohort`."""

    salt: str = Field(min_length=1, max_length=64)
    fraction: float = Field(default=1.0, gt=0, le=1)
    begin: float = Field(default=0.0, ge=0, lt=1)
    where: Where = Field(default={})
    min_examples: Count = 0
    fair: bool = False
    by_loss: ByLoss | None = None


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
    local_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Epochs that train the parameters alone that each device keeps for itself, before those of epochs train the "
        "shared alone (FedRep); 0 trains all together",
    )
    partial_margin_seconds: int = Field(
        default=0,
        ge=0,
        le=86_400,
        description="So many seconds before the deadline a device that is still training ends, and sends what it has, which "
        "counts by its steps; 0: devices train to the end, and may be late",
    )
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


class PersonalTask(Part):
    """What each device makes for itself beside its update; see `fedgrass.protocol.personal_settings`."""

    mode: Literal["fine_tune", "ditto"]
    strength: float = Field(default=0.1, ge=0, le=1000, allow_inf_nan=False)
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    learning_rate: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)


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

    ``promised_noise`` is what the cloud says that it adds to the sum of the updates, or of the statistics, in units of the
    clipping norm; no device can see that it does.

    ``max_age`` is for rounds that never wait: an update counts in so many rounds after its own, so a device goes on training when
    the round closes, and takes the newest one afterwards.

    ``watch`` is the profile that devices compare their live data with, asked or not, until another announcement says otherwise.
    """

    fleet: FleetName
    round: RoundNumber
    task: Literal["fit", "evaluate", "sum", "statistics"] = "fit"
    opened_at: AwareDatetime
    deadline: AwareDatetime
    max_age: Annotated[int, Field(ge=0, le=100)] = 0
    base: Base
    compare: Base | None = None
    cohort: Cohort
    fit: FitTask = Field(default_factory=FitTask)
    update: UpdateTask = Field(default_factory=UpdateTask)
    secure: SecureTask | None = None
    statistics: StatisticsTask | None = None
    personal: PersonalTask | None = None
    promised_noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    sums: SumTask | None = None
    watch: ProfileReference | None = None
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
    metrics: Metrics = Field(default={})
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
    metrics: Metrics = Field(default={})


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
    fit: FitTask = Field(default_factory=FitTask)
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
    metrics: Metrics = Field(default={})
    seconds_train: float = Field(default=0.0, ge=0, allow_inf_nan=False)
