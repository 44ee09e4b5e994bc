import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedgrass.local.core_device.recipe import parse
from fedgrass.local.core_device.scripts import read_lifecycle
from fedgrass.local.core_device.variables import Places, Variables
from fedgrass.local.recipe import DependencyType, RecipeError

LINUX = {"os": "linux", "architecture": "amd64", "runtime": "aws_nucleus_classic"}
RECIPE = {
    "RecipeFormatVersion": "2020-01-25",
    "ComponentName": "com.example.A",
    "ComponentVersion": "1.2.3",
    "ComponentDependencies": {"com.example.B": {"VersionRequirement": "^1.0.0", "DependencyType": "SOFT"}},
    "Manifests": [
        {"Platform": {"os": "windows"}, "Lifecycle": {"run": "windows"}},
        {"Platform": {"os": "linux", "runtime": "*"}, "Lifecycle": {"run": "linux"}},
        {"Lifecycle": {"run": "any"}},
    ],
}


@pytest.mark.parametrize("encode", [json.dumps, yaml.safe_dump])
def test_a_recipe_is_read_as_yaml_and_as_json(encode: object) -> None:
    recipe = parse(encode(RECIPE).encode())  # type: ignore[operator]
    assert (recipe.name, recipe.version) == ("com.example.A", "1.2.3")
    assert recipe.dependencies["com.example.B"].type is DependencyType.SOFT
    assert recipe.manifest(LINUX).lifecycle == {"run": "linux"}


@pytest.mark.parametrize(
    ("platform", "fits"),
    [
        ({"os": "linux"}, True),
        ({"os": "*", "architecture": "amd64"}, True),
        ({"os": "/linux|darwin/"}, True),
        ({"architecture": "aarch64"}, False),
        ({"runtime": "aws_nucleus_lite"}, False),
        ({"unheard-of": "x"}, False),
        ({"unheard-of": "*"}, True),
    ],
)
def test_a_manifest_fits_by_its_platform(platform: dict[str, str], fits: bool) -> None:
    recipe = parse(json.dumps({**RECIPE, "Manifests": [{"Platform": platform}]}).encode())
    assert recipe.manifests[0].fits(LINUX) is fits


def test_a_recipe_for_other_platforms_is_refused_by_name() -> None:
    recipe = parse(json.dumps({**RECIPE, "Manifests": [{"Platform": {"os": "windows"}}]}).encode())
    with pytest.raises(RecipeError, match="no manifest"):
        recipe.manifest(LINUX)


@pytest.mark.parametrize("content", [b"", b"{", b"- 1", b"\xff", b"a: [", json.dumps({"ComponentName": "x"}).encode()])
def test_what_is_no_recipe_is_refused(content: bytes) -> None:
    with pytest.raises(RecipeError):
        parse(content)


def test_lifecycles_have_the_nucleus_default_timeouts_and_any_case() -> None:
    scripts = read_lifecycle(
        {
            "Install": {"Script": "a", "Timeout": "1800", "Setenv": {"X": 1}},
            "startup": "b",
            "SHUTDOWN": {"script": "c"},
            "setenv": {"Y": "2"},
        }
    )
    assert {phase: script.timeout for phase, script in scripts.items()} == {
        "install": 1800.0,
        "startup": 120.0,
        "shutdown": 15.0,
    }
    assert scripts["install"].environment == {"X": "1", "Y": "2"}


@pytest.mark.parametrize(
    "lifecycle", [{"run": "a", "startup": "b"}, {"bootstrap": "a"}, {"run": {}, "install": {"timeout": 1}}]
)
def test_lifecycles_that_cannot_work_are_refused(lifecycle: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        read_lifecycle(lifecycle)


@pytest.fixture
def variables() -> Variables:
    def places(name: str) -> Places:
        return Places(Path(f"/a/{name}"), Path(f"/u/{name}"), Path(f"/w/{name}"))

    configurations: dict[str, dict[str, Any]] = {
        "A": {"x": {"y": [1, {"z": "found"}]}, "flag": True},
        "B": {"k": "of B"},
        "C": {"k": "of C"},
    }
    return Variables("A", "thing-1", Path("/root"), frozenset({"B"}), places, configurations.__getitem__)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("{artifacts:path} {artifacts:decompressedPath} {work:path}", "/a/A /u/A /w/A"),
        ("{iot:thingName} {kernel:rootPath}", "thing-1 /root"),
        ("{configuration:/x/y/1/z} {configuration:/flag}", "found true"),
        ("{configuration:/x/y}", '[1,{"z":"found"}]'),
        ("{B:artifacts:decompressedPath} {B:configuration:/k}", "/u/B of B"),
        ("{A:work:path}", "/w/A"),
        ("{C:configuration:/k}", "{C:configuration:/k}"),  # not a direct dependency
        ("{configuration:/none} ${HOME} {x} {no:such}", "{configuration:/none} ${HOME} {x} {no:such}"),
    ],
)
def test_recipe_variables_are_resolved_or_left_alone(variables: Variables, script: str, expected: str) -> None:
    assert variables.interpolate({"run": {"script": script, "timeout": 5}}) == {
        "run": {"script": expected, "timeout": 5}
    }
