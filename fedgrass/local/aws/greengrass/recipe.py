"""A component recipe as the Greengrass service accepts it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import yaml
from pydantic import Field, ValidationError, field_validator

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.greengrass.semver import Requirement, Version
from fedgrass.local.recipe import Dependency, Manifest, Recipe

# The service's quota on a recipe, 16 KB.
MAX_RECIPE_BYTES = 16_000


class PublishedDependency(Dependency):
    """What a component needs of another: a range of versions that can be read."""

    @field_validator("version_requirement")
    @classmethod
    def _is_a_range(cls, text: str) -> str:
        try:
            Requirement.parse(text)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return text


class PublishedRecipe(Recipe):
    """A recipe as the service accepts it: held to more than a device asks for."""

    name: str = Field(alias="ComponentName", pattern=r"^[a-zA-Z0-9\-_.]+$", max_length=128)
    # Narrower than what it is made from: nobody puts a plain one into a recipe that was read.
    dependencies: dict[str, PublishedDependency] = Field(  # type: ignore[assignment]
        default_factory=dict, alias="ComponentDependencies"
    )
    manifests: list[Manifest] = Field(alias="Manifests", min_length=1)

    @field_validator("format_version", mode="before")
    @classmethod
    def _known_format(cls, value: object) -> str:
        text = value.isoformat() if isinstance(value, datetime.date) else str(value)  # YAML makes it a date
        if text != "2020-01-25":
            raise ValueError(f"expected 2020-01-25, found {text}")
        return text

    @field_validator("version")
    @classmethod
    def _semantic(cls, text: str) -> str:
        try:
            Version.parse(text)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return text

    def fits(self, attributes: Mapping[str, str]) -> bool:
        """Tell whether one of its manifests is for a device with these platform attributes.

        ``runtime`` is the nucleus, which the service leaves to the device.
        """
        return any(
            one.model_copy(update={"platform": _without_runtime(one)}).fits(attributes) for one in self.manifests
        )


def _without_runtime(manifest: Manifest) -> dict[str, str]:
    return {name: wanted for name, wanted in manifest.platform.items() if name != "runtime"}


Document: TypeAlias = dict[str, Any]
"""A recipe as it was written: what the service does not read is kept as it is."""


def load(data: bytes) -> tuple[PublishedRecipe, Document]:
    """Parse and check a recipe in JSON or YAML; return it typed, and whole.

    Raises
    ------
    ApiError
        ``ValidationException`` with the fields at fault.
    """
    if len(data) > MAX_RECIPE_BYTES:
        raise ApiError("ValidationException", f"The recipe has {len(data)} bytes; the limit is {MAX_RECIPE_BYTES}.")
    try:
        # One parser for both: JSON is YAML.
        whole = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ApiError("ValidationException", f"The recipe is neither JSON nor YAML: {error}.") from error
    if not isinstance(whole, dict):
        raise ApiError("ValidationException", "The recipe is not a map of keys.")
    try:
        recipe = PublishedRecipe.model_validate(whole)
    except ValidationError as error:
        fields = [
            {"name": ".".join(str(part) for part in item["loc"]), "message": item["msg"]}
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        summary = "; ".join(f"{field['name']}: {field['message']}" for field in fields)
        raise ApiError(
            "ValidationException",
            f"The recipe is not valid: {summary}",
            reason="FIELD_VALIDATION_FAILED",
            fields=fields,
        ) from error
    # As text again: JSON cannot write the date that YAML made of it.
    whole["RecipeFormatVersion"] = recipe.format_version
    return recipe, whole


def dump(whole: Document, output_format: str = "JSON") -> bytes:
    """Write a recipe as ``JSON`` or ``YAML``."""
    text = yaml.safe_dump(whole, sort_keys=False) if output_format == "YAML" else json.dumps(whole, indent=2)
    return text.encode()
