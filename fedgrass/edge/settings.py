"""The configuration of the components on a device.

camelCase in recipes and deployments, snake_case here. Nucleus lite turns every value of a YAML recipe into a string
(``"5"``, ``"true"``, ``"null"``), so values are coerced, and null means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from fedgrass.data import DataSettings
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.names import FleetName


class Settings(BaseModel):
    """Base of a component's configuration. Unknown keys (``accessControl`` among them) are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class RuntimeSettings(Settings):
    """What all components of a device share: the configuration of ``com.fedgrass.Runtime``."""

    fleet: FleetName
    data: DataSettings = DataSettings()
    engine: str = Field(
        default="litert",
        min_length=1,
        max_length=200,
        description="litert, keras, torch, sklearn, flower, or module:Class",
    )
    builder: str = Field(
        default="", max_length=200, description="module:function that builds the model, for others than litert"
    )
    threads: int = Field(default=1, ge=1, le=256)


class TrainerSettings(Settings):
    """Configuration of ``com.fedgrass.Trainer``."""

    nice_level: int = Field(default=10, ge=0, le=19, description="Added to the training thread's niceness")
    defer_seconds: float = Field(
        default=600, ge=0, le=86_400, description="Longest wait of a component update for a training"
    )
    status_seconds: float = Field(
        default=30, gt=0, le=3600, description="How often the status is repeated on the device"
    )
    min_free_disk_mb: int = Field(default=100, ge=0)
    min_free_memory_mb: int = Field(default=50, ge=0)
    max_waiting_uploads_mb: int = Field(default=512, ge=1, description="Updates kept while there is no link")
    max_bundle_mb: int = Field(default=2048, ge=1, description="Largest model that is downloaded")


class ModelDeployerSettings(Settings):
    """Configuration of ``com.fedgrass.ModelDeployer``; the admission of models reads it too."""

    tolerance: float = Field(default=0.05, ge=0, le=1, description="By how much a new model's accuracy may be lower")
    keep: int = Field(default=3, ge=1, le=100, description="Models kept on the device, the active one included")
    rescan_seconds: float = Field(default=30, gt=0, le=3600)


class HeartbeatSettings(Settings):
    """Configuration of ``com.fedgrass.Heartbeat``."""

    interval_seconds: float = Field(default=30, ge=1, le=86_400)


S = TypeVar("S", bound=Settings)


class _Configurations(Protocol):
    def get_configuration(self, component: str) -> dict[str, Any]: ...


def read(source: _Configurations, component: str, model: type[S]) -> S:
    """Get a component's configuration over IPC and check it."""
    return parse(model, source.get_configuration(component), component)


def parse(model: type[S], document: Mapping[str, Any], component: str) -> S:
    """Check a configuration.

    Raises
    ------
    ConfigurationError
        Naming the component and the first key that is missing or out of range.
    """
    try:
        return model.model_validate(_without_nulls(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        found = str(first.get("input"))[:60]
        raise ConfigurationError(
            f"{component}: {where}: {first['msg']} (found {found}). Correct the deployment's configuration of {component}"
        ) from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None and item != "null"}
    return value
