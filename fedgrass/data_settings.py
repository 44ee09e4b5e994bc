"""Where a device's examples are; apart from what reads them, for NumPy is not needed to know it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from fedgrass.parts import LOADERS


class DataSettings(BaseModel):
    """Where a device's examples are, as the component's configuration says it (camelCase there)."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    loader: str = Field(
        default="npz",
        max_length=200,
        description=f"{', '.join(LOADERS.built_in())}, one that a package registers, or module:function",
    )
    path: str = Field(default="", max_length=1024)
    label: str = Field(default="", max_length=200, description="The csv loader's label column; else the last")
    validation_fraction: float = Field(default=0.2, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    max_bytes: int = Field(default=1 << 30, ge=1, description="Larger npz and csv data are refused")

    @property
    def file(self) -> Path:
        """``path`` with the component's environment variables filled in, ``$AWS_IOT_THING_NAME`` among them."""
        return Path(os.path.expandvars(self.path)).expanduser()
