"""Who judges a model of which devices keep parameters for themselves: devices, or nobody; never what no device has."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgrass.cloud.aggregator.release import upload
from fedgrass.inference import write_bundle
from fedgrass.personal import shared_of
from fedgrass.protocol.roster import write_roster
from fedgrass.protocol.settings import FleetSettings
from fedgrass.update.writer import write_update
from tests.fedgrass.cloud.aggregator.conftest import FLEET, Fleet, header, make_record
from tests.fedgrass.cloud.aggregator.test_device_evaluation import THINGS, Devices, X, figures, labels_of
from tests.fedgrass.partly_local import partly_local


@pytest.fixture
def personal(fleet: Fleet, tmp_path: Path) -> Fleet:
    """A fleet whose base has a local head, with updates that spoil the model; the evaluation set would hold it."""
    labels = labels_of(fleet)
    whole = partly_local(fleet.base, tmp_path / "head", "head")
    fleet.base = write_bundle(whole, whole.parameters(), tmp_path / "next", version="2.0.0")
    fleet.current = upload(fleet.base, fleet.clients.bucket, FLEET)
    fleet.put_evaluation_set(X, labels)
    before = shared_of(fleet.base.manifest, fleet.base.parameters())
    for thing in THINGS:
        write_update(tmp_path / thing, before, {n: -v for n, v in before.items()}, header(fleet.base, thing))
        fleet.put(thing, (tmp_path / thing).read_bytes())
    return fleet


def test_the_operators_figures_stand_in_the_report_and_hold_nothing(personal: Fleet) -> None:
    report = personal.run()
    assert report.outcome == "released", report.reason
    assert "only they can judge" in report.reason
    assert report.evaluation is not None
    assert report.evaluation.accuracy is not None
    assert report.evaluation.accuracy < 0.5
    assert report.local_parameters == sum(p.size for p in personal.base.manifest.local_parameters) > 0
    assert report.best is None


def test_released_on_improvement_means_what_devices_say(personal: Fleet) -> None:
    personal.settings = FleetSettings(release="on_improvement")
    report = personal.run()
    assert report.outcome == "held"
    assert "whether the model is better is not known" in report.reason


@pytest.mark.parametrize(("new", "outcome"), [(0.95, "released"), (0.5, "held")])
def test_devices_that_are_asked_judge_in_place_of_the_evaluation_set(personal: Fleet, new: float, outcome: str) -> None:
    personal.know(*THINGS)
    personal.settings = FleetSettings.model_validate({"gate": {"devices_seconds": 1}})
    write_roster(personal.clients.rounds, make_record(FLEET, personal.current), alive=THINGS, asked=THINGS)
    devices = Devices(personal, lambda thing, heard: figures(thing, heard, 100, new, 0.9))
    report = personal.run(iot_data=devices)
    assert report.outcome == outcome, report.reason
    assert report.evaluated_by_devices == 3
    assert len(devices.heard) == 1
