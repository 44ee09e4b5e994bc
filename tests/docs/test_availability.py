"""Whatever of AWS is used stands on the page that says whether AWS still offers it."""

from __future__ import annotations

import re

from tests.fixtures.places import ROOT

PAGE = (ROOT / "docs/availability.md").read_text()
TEMPLATES = "\n".join(path.read_text() for path in (ROOT / "cloud").glob("*.yaml"))


def test_every_resource_type_of_the_templates_is_on_the_page_and_no_other() -> None:
    used = set(re.findall(r"^    Type: (AWS::\w+::\w+)$", TEMPLATES, re.MULTILINE))
    assert used == set(re.findall(r"AWS::\w+::\w+", PAGE))


def test_every_runtime_and_image_is_on_the_page() -> None:
    images = re.findall(r"FROM (\S+)", (ROOT / "cloud/image/Dockerfile").read_text())
    named = {*re.findall(r"Runtime: (\S+)", TEMPLATES), *re.findall(r"Image: (aws/\S+)", TEMPLATES), *images}
    assert len(named) >= 3
    assert [name for name in named if f"`{name}`" not in PAGE] == []


def test_every_service_that_the_code_calls_is_on_the_page() -> None:
    folders = ("fedgrass",)
    code = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    called = set(re.findall(r"""(?:\.|_)(?:client|resource)\(\s*"([a-z0-9-]+)\"""", code))
    named = set(re.findall(r"`([a-z0-9-]+)`", PAGE.rsplit("The APIs that the code calls", 1)[1]))
    assert called <= named
