"""Device Defender: what devices report is what the template knows, by the same names."""

from __future__ import annotations

import json
from pathlib import Path

from cloud.infrastructure.deploy import TEMPLATE
from fedgrass.edge import defender
from fedgrass.edge.system import Sensors
from fedgrass.protocol.messages import Tally


def test_every_custom_metric_of_a_device_is_defined_and_watched_or_kept(tmp_path: Path) -> None:
    report = json.loads(defender.report("FLEET", Sensors(tmp_path).read(), Tally()))
    template = TEMPLATE.read_text()
    for name in report["custom_metrics"]:
        assert f'MetricName: !Sub "{name.replace("FLEET", "${Fleet}")}"' in template
    profile = template[template.index("  DeviceBehaviour:") :]
    defined = [line.strip(" :") for line in template.splitlines() if line.startswith("  ") and line.endswith("Metric:")]
    assert len(defined) == len(report["custom_metrics"])
    for name in defined:
        assert f"!Ref {name}" in profile
