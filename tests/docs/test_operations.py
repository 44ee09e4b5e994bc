"""Whoever is woken by an alarm finds what to do about it."""

from __future__ import annotations

import re

from tests.fixtures.places import ROOT

TEMPLATE = (ROOT / "cloud/template.yaml").read_text()


def sections(heading: str) -> set[str]:
    """Headings below one of the page's."""
    part = (ROOT / "docs/operations.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^### (.+)$", part, re.MULTILINE))


def test_each_alarm_of_the_template_has_its_section_and_no_other() -> None:
    alarms = set(re.findall(r'AlarmName: !Sub "fedgrass/\$\{Fleet\}/([\w-]+)"', TEMPLATE))
    assert len(alarms) == TEMPLATE.count("Type: AWS::CloudWatch::Alarm") > 0
    functions = {alarm for alarm in alarms if alarm.endswith("-errors")}
    alarms = alarms - functions | {"…-errors"}
    assert sections("Alarms") == alarms


def test_each_behaviour_that_device_defender_watches_has_its_section_and_no_other() -> None:
    profile = TEMPLATE.split("Type: AWS::IoT::SecurityProfile")[1].split("AdditionalMetricsToRetainV2")[0]
    behaviours = set(re.findall(r"^        - Name: (\w+)$", profile, re.MULTILINE))
    assert behaviours
    assert sections("Device Defender") == behaviours


def test_each_log_group_of_the_template_is_named() -> None:
    groups = re.findall(r'LogGroupName: !Sub "/fedgrass/\$\{Fleet\}/(\w+)"', TEMPLATE)
    page = (ROOT / "docs/operations.md").read_text()
    assert groups
    assert [name for name in groups if f"`/fedgrass/mill/{name}`" not in page] == []
