"""What the trainer and its child say to each other: a task, then orders down and reports up, each a line of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings, TrainerSettings
from fedgrass.errors import MessageError, first_problem
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.message import Count, Metrics, Reason
from fedgrass.protocol.messages import Announcement, Command
from fedgrass.protocol.names import Sha256, Version
from fedgrass.protocol.profile import ProfileReference

if TYPE_CHECKING:
    from fedgrass.bundle import Bundle
    from fedgrass.floors import Floors

UPDATE, CHECKPOINT, RESIDUAL = "update.safetensors", "checkpoint.safetensors", "residual.safetensors"
HELPER, KEYS = "helper", "keys"
CONTROL = "control.safetensors"
FINE_TUNING = "fine-tuning.safetensors"

L = TypeVar("L", bound="Line")


class Line(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    def encode(self) -> bytes:
        """Return the line with its end."""
        return self.model_dump_json(by_alias=True).encode() + b"\n"

    @classmethod
    def decode(cls: type[L], line: bytes) -> L:
        """Read a line; raises `MessageError` naming the field that is wrong."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise MessageError(f"{cls.__name__}: {first_problem(error)}") from error


class Watched(Line):
    """The profile that live data are to be compared with, and the bucket that it is in."""

    profile: ProfileReference
    bucket: str


class Activated(Line):
    """The active model that this device is to fine-tune a copy of, and by what it chooses between the two."""

    version: Version
    sha256: Sha256
    deployer: ModelDeployerSettings = Field(default_factory=ModelDeployerSettings)

    @classmethod
    def of(cls, model: Bundle, deployer: ModelDeployerSettings | None = None) -> Activated:
        """Name a model."""
        manifest = model.manifest
        return cls(
            version=manifest.version, sha256=manifest.parameters_sha256, deployer=deployer or ModelDeployerSettings()
        )

    @property
    def mark(self) -> str:
        """What tells this model from any other: a fleet that is made anew begins with the same versions."""
        return f"{self.version} {self.sha256}"

    def is_still(self, active: Bundle | None) -> bool:
        """Whether it is the active model."""
        return active is not None and Activated.of(active).mark == self.mark


class Task(Line):
    """What the child is to do: the round that is announced, the command, to compare live data, to fine-tune, or else to count.

    ``patience`` is what is left of the seconds for which the work may wait for the device. ``tries_engine``: before it counts, it
    opens the model as a round would. ``train_seconds``: after so many from now the training ends with what it has; None: never.
    """

    thing: str
    work: Path
    store: Path
    runtime: RuntimeSettings
    settings: TrainerSettings
    patience: float = 0.0
    train_seconds: float | None = None
    tries_engine: bool = False
    announcement: Announcement | None = None
    command: Command | None = None
    watched: Watched | None = None
    activated: Activated | None = None

    @property
    def floors(self) -> Floors:
        """What the device's owner sets as the least to train on."""
        from fedgrass.floors import Floors

        return Floors(self.settings.min_examples, self.settings.min_steps)

    @property
    def update(self) -> Path:
        """File that the round's update is written to."""
        return self.work / UPDATE

    @property
    def checkpoint(self) -> Path:
        """File that holds a training between two batches."""
        return self.work / CHECKPOINT

    @property
    def builders(self) -> Path:
        """Folder that code which comes with models is unpacked to."""
        return self.work / "builders"

    @property
    def residual(self) -> Path:
        """File that holds what a lossy codec left out of this device's updates."""
        return self.work / RESIDUAL

    @property
    def drift(self) -> Path:
        """File that holds how this device's data were when it first knew the fleet's profile."""
        return self.work / "drift.safetensors"

    @property
    def control(self) -> Path:
        """File that holds what a strategy has this device keep from round to round."""
        return self.work / CONTROL


class Order(Line):
    """How the child is to go on: ``hold`` says why it must wait, if it must; ``stop`` is between two batches."""

    hold: str = ""
    slow: bool = False
    stop: bool = False


class Result(Line):
    """What became of a task. ``stopped``: it may be done again, and goes on from its checkpoint.

    ``sha256`` and ``bytes`` are of the file that was written: a round's update, a command's parameters. ``given_up``: whoever did
    it died too often.
    """

    status: Literal["done", "declined", "failed", "stopped"]
    reason: Reason = ""
    given_up: bool = False
    version: Version | None = None
    sha256: Sha256 | None = None
    bytes: Count = 0
    num_examples: Count = 0
    metrics: Metrics = {}
    sums: str | None = None
    base_sums: str | None = None
    drift: Drift | None = None
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Report(Line):
    """What the child says.

    ``began``: it has read its task. ``progress``: so many epochs are done. ``waits``, ``trouble``: the reason says why, or what.
    ``ended``: the last, with the result.
    """

    say: Literal["began", "progress", "waits", "trouble", "ended"]
    epoch: Count = 0
    examples: Count = 0
    reason: Reason = ""
    result: Result | None = None
