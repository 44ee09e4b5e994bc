"""Component recipes: one model for the service, which accepts them, and for the device, which does what they say.

Source: "AWS IoT Greengrass component recipe reference", format 2020-01-25. AWS, too, reads them by one library on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from fedgrass.errors import FedgrassError
from fedgrass.local.platforms import fits


class RecipeError(FedgrassError):
    """A recipe is malformed, or has no manifest for this platform."""

    code = "recipe"


class DependencyType(str, Enum):
    """What a dependency's state means to the dependent: HARD waits for it and restarts with it."""

    HARD = "HARD"
    SOFT = "SOFT"


class Dependency(BaseModel):
    """One entry of ``ComponentDependencies``."""

    version_requirement: str = Field("*", alias="VersionRequirement")
    type: DependencyType = Field(DependencyType.HARD, alias="DependencyType")


class Permission(BaseModel):
    """Who may read and execute an artifact."""

    read: Literal["NONE", "OWNER", "ALL"] = Field("OWNER", alias="Read")
    execute: Literal["NONE", "OWNER", "ALL"] = Field("NONE", alias="Execute")


class Artifact(BaseModel):
    """One entry of a manifest's ``Artifacts``; the digest is base64, added when the version is created."""

    uri: str = Field(validation_alias=AliasChoices("Uri", "URI"))
    unarchive: Literal["NONE", "ZIP"] = Field("NONE", alias="Unarchive")
    digest: str | None = Field(None, alias="Digest")
    algorithm: Literal["SHA-256"] | None = Field(None, alias="Algorithm")
    permission: Permission = Field(Permission.model_validate({}), alias="Permission")


class Manifest(BaseModel):
    """What a component is on one kind of platform."""

    platform: dict[str, str] = Field(default_factory=dict, alias="Platform")
    lifecycle: dict[str, Any] = Field(default_factory=dict, alias="Lifecycle")
    selections: list[str] = Field(default_factory=list, alias="Selections")
    artifacts: list[Artifact] = Field(default_factory=list, alias="Artifacts")

    def fits(self, attributes: Mapping[str, str]) -> bool:
        """Tell whether every platform requirement is met; ``*`` asks for nothing, ``/…/`` is a pattern."""
        return all(fits(wanted, attributes.get(key)) for key, wanted in self.platform.items())


class ComponentConfiguration(BaseModel):
    """The recipe's ``ComponentConfiguration``."""

    default: dict[str, Any] = Field(default_factory=dict, alias="DefaultConfiguration")


class Recipe(BaseModel):
    """One component version."""

    model_config = ConfigDict(extra="ignore")

    format_version: Literal["2020-01-25"] = Field(alias="RecipeFormatVersion")
    name: str = Field(alias="ComponentName", min_length=1, max_length=128, pattern=r"^[\w.-]+$")
    version: str = Field(alias="ComponentVersion", min_length=1, max_length=64)
    description: str = Field(default="", alias="ComponentDescription")
    publisher: str = Field(default="", alias="ComponentPublisher")
    configuration: ComponentConfiguration = Field(
        default_factory=ComponentConfiguration, alias="ComponentConfiguration"
    )
    dependencies: dict[str, Dependency] = Field(default_factory=dict, alias="ComponentDependencies")
    manifests: list[Manifest] = Field(default_factory=list, alias="Manifests")
    lifecycle: dict[str, Any] = Field(default_factory=dict, alias="Lifecycle")

    def manifest(
        self, attributes: Mapping[str, str], *, requires_runtime: bool = False, requires_artifacts: bool = False
    ) -> Manifest:
        """Choose the first manifest that fits a device, with the lifecycle that applies to it.

        Parameters
        ----------
        attributes
            The device's platform, by attribute.
        requires_runtime
            Whether a manifest that names no ``runtime`` does not fit, as on nucleus lite.
        requires_artifacts
            Whether the one that fits must have the key ``Artifacts``, if only with an empty list.

        Returns
        -------
        Manifest
            The manifest.

        Raises
        ------
        RecipeError
            There are manifests, and none fits, or the one that does lacks a key.
        """
        if not self.manifests:
            return Manifest(Lifecycle=_select(self.lifecycle, []))
        # The first that fits, in the recipe's order, as both nuclei choose.
        for manifest in self.manifests:
            if manifest.fits(attributes) and ("runtime" in manifest.platform or not requires_runtime):
                if requires_artifacts and "artifacts" not in manifest.model_fields_set:
                    raise RecipeError(
                        f"{self.name} {self.version}: Missing required 'Artifacts' key in Manifest; an empty list will do"
                    )
                lifecycle = manifest.lifecycle or _select(self.lifecycle, manifest.selections)
                return manifest.model_copy(update={"lifecycle": lifecycle})
        found = ", ".join(str(manifest.platform) for manifest in self.manifests)
        raise RecipeError(
            f"{self.name} {self.version}: no manifest for {dict(attributes)}; the recipe has {found}: add one"
        )


def _select(lifecycle: Mapping[str, Any], selections: list[str]) -> dict[str, Any]:
    """Resolve the selection keys of a recipe-wide lifecycle (``Lifecycle: {linux: {run: …}, all: {…}}``)."""
    for selection in [*selections, "all"]:
        if isinstance(lifecycle.get(selection), Mapping):
            return dict(lifecycle[selection])
    return dict(lifecycle)
