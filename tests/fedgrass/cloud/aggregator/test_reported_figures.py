"""What devices report of their training is in the round's report and in its record, whatever the figures are called."""

from __future__ import annotations

import pytest

from fedgrass.protocol.records import round_key
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet


def test_figures_of_any_name_are_averaged_by_examples(fleet: Fleet) -> None:
    fleet.put_update("press-a", 1, num_examples=20, metrics={"loss": 1.0, "my_score": 0.5, "steps": 3.0})
    fleet.put_update("press-b", 2, num_examples=10, metrics={"loss": 4.0, "my_score": 0.2, "alone": 9.0})
    report = fleet.run()
    assert report.evaluation is None
    assert report.reported == pytest.approx({"loss": 2.0, "my_score": 0.4})
    record = fleet.clients.rounds.get_item(Key={"fleet": FLEET, "key": round_key(ROUND)})["Item"]
    assert {name: float(value) for name, value in record["reported"].items()} == pytest.approx(report.reported)
