"""What devices report of their training is in the round's report and in its record, whatever the figures are called."""

from __future__ import annotations

import pytest

from fedgrass.protocol.gain import ByDevice, Gain
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


def test_what_models_of_their_own_bring_is_in_the_report_and_the_record(fleet: Fleet) -> None:
    fleet.put_update(
        "press-a", 1, metrics={"base_accuracy": 0.5, "validation_accuracy": 0.75, "personal_accuracy": 1.0}
    )
    fleet.put_update(
        "press-b", 2, metrics={"base_accuracy": 0.75, "validation_accuracy": 0.5, "personal_accuracy": 0.25}
    )
    # What cannot be is of no device; what tells of the fleet's model alone compares nothing.
    fleet.put_update("press-c", 3, metrics={"base_accuracy": 7.0, "personal_accuracy": 9.0})
    fleet.put_update("press-d", 4, metrics={"base_accuracy": 0.5})
    report = fleet.run()
    assert report.personal is not None
    assert (report.personal.devices, report.personal.better) == (2, {"ditto": 1, "fleet": 1})
    assert report.personal.best == ByDevice(median=0.875, worst_tenth=0.75)
    assert report.personal.gain == ByDevice(median=0.25, worst_tenth=0.0)
    record = fleet.clients.rounds.get_item(Key={"fleet": FLEET, "key": round_key(ROUND)})["Item"]
    assert Gain.model_validate(record["personal"]) == report.personal
