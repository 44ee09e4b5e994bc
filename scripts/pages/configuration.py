"""docs/reference/configuration.md: every setting of the components and of a fleet's rounds."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedgrass.data import DataSettings
from fedgrass.edge import settings as edge
from fedgrass.protocol.names import HEARTBEAT, MODEL_DEPLOYER, RUNTIME, TRAINER
from fedgrass.protocol.settings import FleetSettings

COMPONENTS: dict[str, type[BaseModel]] = {
    RUNTIME: edge.RuntimeSettings,
    f"{RUNTIME}, below `data`": DataSettings,
    TRAINER: edge.TrainerSettings,
    MODEL_DEPLOYER: edge.ModelDeployerSettings,
    HEARTBEAT: edge.HeartbeatSettings,
}


def bounds(field: FieldInfo) -> str:
    """Return a field's limits in words."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return ", ".join(limits)


def default(field: FieldInfo) -> str:
    """Return a field's default as a recipe would write it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return f"`{', '.join(map(str, value)).strip(' ,')}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a table row for each setting, those of nested objects by their path."""
    lines = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        nested: Any = field.annotation
        if model is FleetSettings and len(get_args(nested)) == 2:  # a part that may be absent
            nested = get_args(nested)[0]
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if model is not edge.RuntimeSettings:  # its `data` has a table of its own
                lines += rows(nested, f"{key}.")
            continue
        lines.append(
            f"| `{key}` | {default(field)} | {bounds(field)} | {(field.description or '').replace('|', '/')} |"
        )
    return lines


def page() -> str:
    """Return the whole page."""
    heading = "| key | default | bounds | |\n|---|---|---|---|\n"
    parts = [
        "# Configuration\n\nMade from the code by `scripts/reference`.\n",
        "## On a device\n\nConfiguration of the components, merged by a deployment's `configurationUpdate`. Values may be "
        "strings.\n",
        *(
            f"### `{name.split(',')[0]}`{name[len(name.split(',')[0]) :]}\n\n{heading}" + "\n".join(rows(model)) + "\n"
            for name, model in COMPONENTS.items()
        ),
        "## A fleet's rounds\n\n`fedgrass fleet settings --set KEY=VALUE` keeps one for good; `fedgrass round start --set "
        "KEY=VALUE`, or the input of an execution in the console, lays it over for one start.\n\n"
        + heading
        + "\n".join(rows(FleetSettings))
        + "\n",
    ]
    return "\n".join(parts)
