"""The template's parameters, checked as CloudFormation would, before anything is changed."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml

from fedgrass.cloud.infrastructure.package import template
from fedgrass.errors import ConfigurationError

_OF_THE_SCRIPT = {"Fleet", "FleetDigest", "CodeBucket", "CodeKey", "DefinitionKey", "SourceKey", "ImageTag"}


@cache
def _declared() -> dict[str, dict[str, Any]]:
    text = template().read_text()
    # Only that section: the rest of the template has CloudFormation's own tags (!Ref, !Sub), which YAML's safe loader
    # refuses.
    section = text[text.index("\nParameters:\n") : text.index("\nConditions:\n")]
    declared: dict[str, dict[str, Any]] = yaml.safe_load(section)["Parameters"]
    return declared


def template_parameters() -> set[str]:
    """Names of the template's parameters."""
    return set(_declared())


def check_parameters(given: dict[str, str]) -> None:
    """Raise `ConfigurationError` naming the first value that the template would refuse, and what it takes."""
    for name, value in given.items():
        declared = _declared().get(name)
        if declared is None:
            known = ", ".join(sorted(template_parameters() - _OF_THE_SCRIPT))
            raise ConfigurationError(f"the template has no parameter {name!r}; it has {known}")
        if name in _OF_THE_SCRIPT:
            raise ConfigurationError(f"parameter {name} is given by the script; leave it out")
        wanted = _wanted(declared, value)
        if wanted is not None:
            raise ConfigurationError(f"parameter {name}: expected {wanted}, found {value!r}")


def _wanted(declared: dict[str, Any], value: str) -> str | None:
    """Return what was expected, None if the value is that."""
    if declared["Type"] == "Number":
        if not re.fullmatch(r"-?\d+(\.\d+)?", value):
            return "a number"
        low, high = declared.get("MinValue"), declared.get("MaxValue")
        if (low is not None and float(value) < low) or (high is not None and float(value) > high):
            return f"a number from {low} to {high}" if high is not None else f"a number from {low} on"
    allowed = declared.get("AllowedValues")
    # YAML reads true and 3 as what they are; CloudFormation compares text.
    if allowed is not None and value not in map(str, allowed):
        return f"one of {', '.join(map(str, allowed))}"
    pattern = declared.get("AllowedPattern")
    if pattern is not None and not re.fullmatch(pattern, value):
        return str(declared.get("ConstraintDescription", f"text that matches {pattern}"))
    if len(value) < declared.get("MinLength", 0):
        return f"{declared['MinLength']} characters or more"
    return None
