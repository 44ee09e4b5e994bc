"""Device Defender: what devices report is what the template knows, by the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fedgrass.edge import defender
from fedgrass.edge.system import Sensors
from fedgrass.protocol.device_messages import Tally
from tests.fedgrass.cloud.infrastructure.resolved import Template
from tests.fixtures.places import TEMPLATE


def test_every_custom_metric_of_a_device_is_defined_and_watched_or_kept(tmp_path: Path) -> None:
    report = json.loads(defender.report("FLEET", Sensors(tmp_path).read(), Tally()))
    template = TEMPLATE.read_text()
    for name in report["custom_metrics"]:
        assert f'MetricName: !Sub "{name.replace("FLEET", "${Fleet}")}"' in template
        assert re.fullmatch(r"[a-zA-Z0-9:_-]{1,128}", name.replace("FLEET", "f" * 40))
    profile = template[template.index("  DeviceBehaviour:") :]
    defined = [line.strip(" :") for line in template.splitlines() if line.startswith("  ") and line.endswith("Metric:")]
    assert len(defined) == len(report["custom_metrics"])
    for name in defined:
        assert f"!Ref {name}" in profile


DEFENDER = {"AWS::IoT::CustomMetric", "AWS::IoT::SecurityProfile"}


def test_nothing_of_device_defender_is_made_unless_it_is_asked_for_and_nothing_else_needs_it() -> None:
    without, given = Template(), Template(DeviceDefender="true")
    only_with = given.resources.keys() - without.resources.keys()
    assert {resource["Type"] for resource in without.resources.values()} & DEFENDER == set()
    assert {given.resources[name]["Type"] for name in only_with} >= DEFENDER
    # Resolving failed on a reference to what is not made: the rest is the same with and without.
    for name, resource in without.resources.items():
        assert resource == given.resources[name]
        assert not any(f'"{other}"' in json.dumps(without.document["Resources"][name]) for other in only_with)


@pytest.mark.parametrize("figure", ["cpu", "memory", "rounds-failed", "devices-silent"])
def test_what_device_defender_would_watch_raises_alarms_without_it(figure: str) -> None:
    names = [alarm["AlarmName"] for alarm in Template().of_type("AWS::CloudWatch::Alarm").values()]
    assert f"fedgrass/digits/{figure}" in names


def test_network_figures_are_those_since_the_last_report_also_when_the_counters_began_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = iter([(100, 1000, 1, 10), (150, 1300, 3, 10), (20, 1300, 5, 11)])

    def counted() -> SimpleNamespace:
        received, sent, packets_in, packets_out = next(counters)
        return SimpleNamespace(bytes_recv=received, bytes_sent=sent, packets_recv=packets_in, packets_sent=packets_out)

    monkeypatch.setattr(psutil, "net_io_counters", counted)
    network = defender.Network()
    assert network.since_last() == {"bytes_in": 50, "bytes_out": 300, "packets_in": 2, "packets_out": 0}
    assert network.since_last() == {"bytes_in": 20, "bytes_out": 0, "packets_in": 2, "packets_out": 1}
