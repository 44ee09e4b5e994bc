import json
from collections.abc import Mapping
from typing import Any

import pytest

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.greengrass.semver import newest
from fedgrass.local.core_device.recipe import platform_attributes
from fedgrass.local.core_device.resolve import ResolutionError, Resolver
from tests.fixtures.doubles import double

Catalogue = Mapping[str, Mapping[str, Mapping[str, str]]]


class Greengrass:
    """The one operation of ``greengrassv2`` that resolution uses, on a catalogue {name: {version: dependencies}}."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.calls = 0

    def resolve_component_candidates(self, *, platform: Any, componentCandidates: list[Any]) -> Any:  # noqa: N803
        self.calls += 1
        assert platform["attributes"]["os"] == "linux"
        return {"resolvedComponentVersions": [self._resolve(candidate) for candidate in componentCandidates]}

    def _resolve(self, candidate: Any) -> dict[str, Any]:
        name = candidate["componentName"]
        version = newest(self._catalogue[name], candidate["versionRequirements"].values())
        if version is None:
            raise LookupError(name)
        recipe = {
            "RecipeFormatVersion": "2020-01-25",
            "ComponentName": name,
            "ComponentVersion": version,
            "ComponentDependencies": {
                dependency: {"VersionRequirement": requirement}
                for dependency, requirement in self._catalogue[name][version].items()
            },
        }
        return {"recipe": json.dumps(recipe).encode()}


def resolve(catalogue: Catalogue, **roots: str) -> dict[str, str]:
    resolver = Resolver(double(Greengrass(catalogue)), platform_attributes("aws_nucleus_classic"))
    found = resolver.resolve({name: {"group": version} for name, version in roots.items()})
    return {name: one.recipe.version for name, one in found.items()}


def test_dependencies_float_to_the_newest_that_all_allow() -> None:
    catalogue: Catalogue = {
        "A": {"1.0.0": {"C": "^1.0.0"}},
        "B": {"1.0.0": {"C": "<1.5.0"}},
        "C": {"1.0.0": {}, "1.4.0": {}, "1.9.0": {}, "2.0.0": {}},
    }
    assert resolve(catalogue, A="1.0.0") == {"A": "1.0.0", "C": "1.9.0"}
    assert resolve(catalogue, A="1.0.0", B="1.0.0") == {"A": "1.0.0", "B": "1.0.0", "C": "1.4.0"}


def test_what_only_a_rejected_choice_needed_is_not_installed() -> None:
    catalogue: Catalogue = {
        "A": {"1.0.0": {"C": "*", "B": "*"}},
        "B": {"1.0.0": {"C": "<2.0.0"}},
        "C": {"1.0.0": {}, "2.0.0": {"D": "*"}},
        "D": {"1.0.0": {}},
    }
    assert resolve(catalogue, A="1.0.0") == {"A": "1.0.0", "B": "1.0.0", "C": "1.0.0"}


def test_a_chain_takes_one_question_per_link() -> None:
    catalogue: Catalogue = {
        "A": {"1.0.0": {"B": "*", "C": "*"}},
        "B": {"1.0.0": {"D": "*"}},
        "C": {"1.0.0": {"D": "*"}},
        "D": {"1.0.0": {}},
    }
    greengrass = Greengrass(catalogue)
    Resolver(double(greengrass), platform_attributes("x")).resolve({"A": {"g": "1.0.0"}})
    assert greengrass.calls == 3


def test_a_dependency_cycle_is_resolved() -> None:
    assert resolve({"A": {"1.0.0": {"B": "*"}}, "B": {"1.0.0": {"A": "*"}}}, A="1.0.0") == {"A": "1.0.0", "B": "1.0.0"}


def test_builtin_components_need_no_recipe_but_the_right_version() -> None:
    nucleus = {"aws.greengrass.Nucleus": ">=2.6.0", "aws.greengrass.StreamManager": "^2.0.0"}
    assert resolve({"A": {"1.0.0": nucleus}}, A="1.0.0") == {"A": "1.0.0"}
    with pytest.raises(ResolutionError, match=r"aws\.greengrass\.Nucleus <2\.0\.0"):
        resolve({"A": {"1.0.0": {"aws.greengrass.Nucleus": "<2.0.0"}}}, A="1.0.0")


def test_choices_that_undo_each_other_end_in_an_error() -> None:
    catalogue: Catalogue = {
        "A": {"1.0.0": {"B": "*"}},
        "B": {"1.0.0": {}, "2.0.0": {"C": "*"}},
        "C": {"1.0.0": {"B": "<2.0.0"}},
    }
    with pytest.raises(FedgrassError, match="do not settle"):
        resolve(catalogue, A="1.0.0")
