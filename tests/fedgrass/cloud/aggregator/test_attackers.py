"""The recommended rule under every attack, with wide margins; `attacks` beside this file prints the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fedgrass.cloud.aggregator.attacks import COLUMNS, PARTITIONS, RECOMMENDED, attack_table, most_lost
from tests.fedgrass.cloud.aggregator.updates import tiny_model

_COLUMNS = [column for column in COLUMNS if column != "held_back"]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_recommended_rule_keeps_its_accuracy_under_every_attack_where_the_mean_does_not(
    tmp_path: Path, partition: str
) -> None:
    table = attack_table(tiny_model(tmp_path, 650), partition, rules=["fedavg", RECOMMENDED], columns=_COLUMNS)
    assert table["fedavg"]["none"].accuracy > 0.8
    assert most_lost(table, "fedavg")[0] > 0.4
    lost, attack = most_lost(table, RECOMMENDED)
    assert lost < 0.12, attack
