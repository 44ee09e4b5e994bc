"""Reading recipes on a device, as YAML or JSON, and what this machine offers to them."""

from __future__ import annotations

import json
import platform

import yaml
from pydantic import ValidationError

from fedgrass.local.recipe import Recipe, RecipeError

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "aarch64", "arm64": "aarch64"}


def parse(content: bytes, *, yaml_is_strings: bool = False) -> Recipe:
    """Parse a recipe in either format; with ``yaml_is_strings``, every scalar of a YAML recipe becomes a string.

    Raises
    ------
    RecipeError
        It is neither YAML nor JSON, or a member is missing or malformed.
    """
    try:
        text = content.decode()
        # Told by its first character: BaseLoader would read a JSON recipe's numbers as strings.
        if text.lstrip().startswith("{"):
            return Recipe.model_validate(json.loads(text))
        loader = yaml.BaseLoader if yaml_is_strings else yaml.SafeLoader
        return Recipe.model_validate(loader(text).get_single_data())
    except (ValueError, yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"recipe is not valid: {error}") from error


def platform_attributes(runtime: str) -> dict[str, str]:
    """Return what this machine and nucleus offer to a manifest's ``Platform``."""
    machine = platform.machine().lower()
    return {
        "os": platform.system().lower(),
        "architecture": _ARCHITECTURES.get(machine, machine),
        "runtime": runtime,
    }
