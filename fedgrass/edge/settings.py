"""The configuration of the components on a device.

camelCase in recipes and deployments, snake_case here. Nucleus lite turns every value of a YAML recipe into a string
(``"5"``, ``"true"``, ``"null"``), so values are coerced, and null means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)
from pydantic.alias_generators import to_camel

from fedgrass.data_settings import DataSettings
from fedgrass.errors import ConfigurationError, first_problem
from fedgrass.parts import ENGINES
from fedgrass.protocol.message import Tags
from fedgrass.protocol.metrics import Metric
from fedgrass.protocol.names import TRAINER_COMMANDS, FleetName, Sha256

EXIT_CONFIGURATION = 78
"""Exit code of a process whose configuration is wrong: EX_CONFIG of sysexits.h."""


class Settings(BaseModel):
    """Base of a component's configuration. Unknown keys (``accessControl`` among them) are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )


class RuntimeSettings(Settings):
    """What all components of a device share: the configuration of ``com.fedgrass.Runtime``."""

    fleet: FleetName
    data: DataSettings = Field(default_factory=DataSettings)
    engine: str = Field(
        default="litert",
        min_length=1,
        max_length=200,
        description=f"{', '.join(ENGINES.built_in())}, one that a package registers, or module:Class",
    )
    builder: str = Field(
        default="", max_length=200, description="module:function that builds the model, for others than litert"
    )
    builders: dict[Sha256, Annotated[str, Field(max_length=200)]] = Field(
        default={},
        max_length=256,
        description="Code that may come with a model, by SHA-256, and the module:object in it that builds the model; "
        "what is not listed is not run",
    )
    packages: tuple[Annotated[str, Field(max_length=400, pattern="^/")], ...] = Field(
        default=(),
        max_length=8,
        description="Folders of packages that this device has of its own, such as its maker's PyTorch: where Python looks after "
        "the runtime's",
    )
    threads: int = Field(default=1, ge=1, le=256)
    tags: Tags = Field(
        default={}, description="What this device is, by which rounds choose: {site: north, hardware: pi4}"
    )
    node_config: dict[str, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(
        default={},
        max_length=64,
        description="What a Flower app finds in its context.node_config, beside the thing's name",
    )


class Window(BaseModel):
    """A time of day in the device's own zone: from ``start``, up to and without ``end``; over midnight if that is earlier."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    start: time
    end: time

    def includes(self, now: time) -> bool:
        """Whether ``now`` lies in it."""
        # An empty window (start equal to end) includes nothing, so it blocks training altogether.
        if self.start <= self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


class GuardSettings(Settings):
    """When a device is unavailable for training: see `fedgrass.edge.resource_policy`."""

    min_free_disk_mb: int = Field(default=100, ge=0)
    min_free_memory_mb: int = Field(default=50, ge=0)
    max_cpu_percent: float = Field(
        default=100, gt=0, le=100, description="Percent of all processors that other programs may use; 100: no limit"
    )
    max_temperature: float = Field(default=85, gt=0, le=200, description="Of the hottest sensor, in °C")
    min_battery_percent: float = Field(default=30, ge=0, le=100, description="Charge below which it waits, on battery")
    only_on_mains: bool = False
    only_when_idle: bool = Field(default=True, description="Wait while the application reports that it is busy")
    window: Window | None = Field(
        default=None, description="Train only then, such as '22:00-06:00' by the device's own clock"
    )
    wait_seconds: float = Field(
        default=3600, ge=0, le=604_800, description="Longest wait for these limits in a round; then the device declines"
    )

    @field_validator("window", mode="before")
    @classmethod
    def _window_from_text(cls, value: object) -> object:
        if not isinstance(value, str) or "-" not in value:
            return value or None
        start, _, end = value.partition("-")
        return {"start": start.strip(), "end": end.strip()}


class TrainerSettings(GuardSettings):
    """Configuration of ``com.fedgrass.Trainer``."""

    nice_level: int = Field(default=10, ge=0, le=19, description="Niceness that is added to the training process")
    cpu_budget: float = Field(
        default=1,
        gt=0,
        le=1,
        description="Share of the processor time that the training threads may take; 1: no limit",
    )
    defer_seconds: float = Field(
        default=600, ge=0, le=86_400, description="How long a component update waits for training to end, at most"
    )
    status_seconds: float = Field(
        default=30, gt=0, le=3600, description="Interval at which the status is repeated on the device"
    )
    max_waiting_uploads_mb: int = Field(
        default=512, ge=1, description="Total size of updates that are kept while offline"
    )
    allow_commands: bool = Field(default=True, description="Whether the operator may send commands to this device")
    allowed_commands: str = Field(
        default=",".join(sorted(TRAINER_COMMANDS)),
        max_length=200,
        description="Commands that the operator may send, separated by commas",
    )
    min_noise_multiplier: float = Field(
        default=0,
        ge=0,
        description="Decline rounds whose updates carry less noise, and commands whose answers would reveal data",
    )
    max_epsilon: float = Field(
        default=50,
        ge=0,
        description="Largest ε that all updates of this device may spend together whatever the cloud does, by its own noise and "
        "that of helpers in secureHelpers; rounds beyond it are declined, and so are rounds without such noise after any with "
        "it. 0: no limit",
    )
    max_promised_epsilon: float = Field(
        default=0,
        ge=0,
        description="Largest ε that all updates of this device may spend together if the cloud adds the noise that it says "
        "(privacy.mode central, or distributed by helpers that secureHelpers does not list), its own noise included; rounds "
        "beyond it are declined, and so are all without noise. 0: no limit",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ of maxEpsilon and maxPromisedEpsilon")
    min_examples: int = Field(
        default=8,
        ge=1,
        description="Decline training on fewer examples in a pass: an update of a single one reveals it",
    )
    min_steps: int = Field(default=1, ge=1, description="Decline training of fewer steps (epochs times batches)")
    max_rounds_per_day: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Rounds to train for within 24 hours; further ones are declined. 0: no limit",
    )
    max_bundle_mb: int = Field(default=2048, ge=1, description="Size of the largest model to download")
    drift_seconds: float = Field(
        default=3600,
        ge=0,
        le=604_800,
        description="Interval at which live data are compared with the fleet's profile, where a round asked for that; 0: never",
    )
    drift_rows: int = Field(default=1000, ge=20, le=100_000, description="Newest examples that are compared")
    drift_path: str = Field(
        default="",
        max_length=1024,
        description="Where they are, read as the data are; labels may be missing. Empty: the newest of the data",
    )
    fine_tune_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Epochs that this device trains a copy of its own of each version that becomes active, between rounds, once; "
        "its application then loads whichever is better here. 0: never",
    )
    fine_tune_learning_rate: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="For that; null: the model's own, by its optimizer"
    )
    helper: bool = Field(
        default=False, description="Sum the masks of other devices, for secure aggregation: this device is a helper"
    )
    helper_min_devices: int = Field(default=2, ge=2, description="As a helper: least number of devices in a set to sum")
    helper_known_seconds: float = Field(
        default=0,
        ge=0,
        description="As a helper: how long it must have known a device's key for the device to count among these",
    )
    secure_helpers: tuple[Annotated[str, Field(max_length=44)], ...] = Field(
        default=(),
        max_length=5,
        description="Public keys of the helpers; decline rounds without secure aggregation by exactly these, and commands "
        "whose answers would reveal data",
    )

    @field_validator("allowed_commands")
    @classmethod
    def _commands_exist(cls, value: str) -> str:
        names = {name.strip() for name in value.split(",")} - {""}
        if odd := sorted(names - TRAINER_COMMANDS):
            raise ValueError(f"there is no command {odd[0]!r}; there are {', '.join(sorted(TRAINER_COMMANDS))}")
        return ",".join(sorted(names))


class ModelDeployerSettings(Settings):
    """Configuration of ``com.fedgrass.ModelDeployer``; the admission of models reads it too."""

    metric: Metric | None = Field(
        default=None,
        description="Figure by which a new model is compared with the active one; null: accuracy, else loss",
    )
    tolerance: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="By how much the new model may be worse: points of a share or of R², else a fraction",
    )
    max_latency_ms: float = Field(default=0, ge=0, description="Median latency of one inference, in ms; 0: no limit")
    max_memory_mb: float = Field(
        default=0, ge=0, description="Memory that the application's model may take; 0: no limit"
    )
    anomaly_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["fleet"] | None = Field(
        default=None,
        description="Score beyond which an anomaly detector's application raises an alarm, or fleet for the threshold that comes "
        "with the model's version; null: by the quantile of this device's kept-back examples, and without any the fleet's",
    )
    keep: int = Field(default=3, ge=1, le=100, description="Models kept on the device, the active one included")
    rescan_seconds: float = Field(default=30, gt=0, le=3600)


class HeartbeatSettings(Settings):
    """Configuration of ``com.fedgrass.Heartbeat``."""

    interval_seconds: float = Field(default=30, ge=1, le=86_400)
    defender_seconds: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="Interval of reports to Device Defender, which accepts one every 5 minutes (300); 0: never",
    )


S = TypeVar("S", bound=Settings)


class _Configurations(Protocol):
    def get_configuration(self, component: str) -> dict[str, Any]: ...


def read(source: _Configurations, component: str, model: type[S]) -> S:
    """Get a component's configuration over IPC, and check it.

    Parameters
    ----------
    source
        The connection to the nucleus.
    component
        Name of the component.
    model
        Class of its settings.

    Returns
    -------
    S
        The settings, with defaults for what is not configured.

    Raises
    ------
    ConfigurationError
        If the configuration is invalid.
    IpcError
        If the nucleus does not give it.
    """
    return parse(model, source.get_configuration(component), component)


def parse(model: type[S], document: Mapping[str, object], component: str) -> S:
    """Check a component's configuration.

    Parameters
    ----------
    model
        Class of its settings.
    document
        The configuration as the nucleus has it.
    component
        Name of the component, for the error.

    Returns
    -------
    S
        The settings, with defaults for what is not configured.

    Raises
    ------
    ConfigurationError
        Naming the component and the first key that is missing or out of range.
    """
    try:
        return model.model_validate(_without_nulls(document))
    except ValidationError as error:
        problem = first_problem(error, "configuration", found=True)
        raise ConfigurationError(
            f"{component}: {problem}. Correct the deployment's configuration of {component}"
        ) from error


def _without_nulls(value: object) -> Any:
    if isinstance(value, Mapping):
        # "null" as well: a YAML recipe on nucleus lite turns every scalar into its text.
        return {key: _without_nulls(item) for key, item in value.items() if item is not None and item != "null"}
    return value
