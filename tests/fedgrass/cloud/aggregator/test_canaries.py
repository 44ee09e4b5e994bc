"""Canaries: a model that they refuse goes no further."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.canaries import Canaries, CanaryError, Heard, job_configuration
from fedgrass.cloud.aggregator.release import prepare_round
from fedgrass.inference import write_bundle
from fedgrass.protocol.names import GLOBAL_MODEL
from fedgrass.protocol.records import Participation, RoundRecord
from fedgrass.protocol.release_settings import Rollout
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET as FLEET_NAME
from tests.fedgrass.cloud.aggregator.conftest import GROUP_ARN, Fleet, make_record, trained
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fixtures.doubles import double

FLEET = "arn:aws:iot:us-east-1:123456789012:thinggroup/fleet"
GROUP = "arn:aws:iot:us-east-1:123456789012:thinggroup/canaries"
COMPONENTS = {"com.fedgrass.Suite": {"componentVersion": "1.0.0"}, GLOBAL_MODEL: {"componentVersion": "1.1.0"}}


class Place:
    """A fleet with four canaries, which say in turn what the test has planned."""

    def __init__(self, *said: Heard, **rollout: Any) -> None:
        self.greengrass = FakeGreengrass()
        self.greengrass.deploy({"targetArn": FLEET, "deploymentName": "f", "components": COMPONENTS})
        self.greengrass.core_devices[GROUP] = ["a", "b", "c", "d"]
        self.said = list(said)
        self.now = 0.0
        self.asked: tuple[tuple[str, ...], int] = ((), 0)
        settings = Rollout(canary_group="canaries", canary_seconds=60, **rollout)
        self.canaries = Canaries(settings, self.heard, pause=self.pause, clock=lambda: self.now)

    def heard(self, things: Sequence[str], since_ms: int) -> Heard:
        self.asked = (tuple(things), since_ms)
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def try_out(self) -> None:
        self.canaries.try_out(double(self.greengrass), FLEET, GLOBAL_MODEL, "1.2.0")

    @property
    def canaries_have(self) -> str:
        [*_, last] = [made for made in self.greengrass.deployments if made["targetArn"] == GROUP]
        assert last["parentTargetArn"] == FLEET
        assert last["components"]["com.fedgrass.Suite"] == COMPONENTS["com.fedgrass.Suite"]
        return str(last["components"][GLOBAL_MODEL]["componentVersion"])


def test_a_model_that_every_canary_makes_active_may_go_on() -> None:
    place = Place(Heard(0, 0), Heard(2, 0), Heard(4, 0))
    place.try_out()
    assert place.canaries_have == "1.2.0"
    assert [made["targetArn"] for made in place.greengrass.deployments] == [FLEET, GROUP]


def test_one_refusal_is_enough_by_default_and_the_canaries_get_the_fleets_model_back() -> None:
    place = Place(Heard(1, 0), Heard(2, 1))
    with pytest.raises(CanaryError, match="1 of 4 canaries refused"):
        place.try_out()
    assert place.canaries_have == "1.1.0"
    assert place.greengrass.deployments[0]["components"] == COMPONENTS


def test_a_share_of_refusals_may_be_allowed() -> None:
    Place(Heard(3, 1), abort_share=0.25).try_out()
    with pytest.raises(CanaryError, match="2 of 4"):
        Place(Heard(2, 2), abort_share=0.25).try_out()


def test_silence_of_some_is_waited_for_and_silence_of_all_stops_the_model() -> None:
    place = Place(Heard(1, 0))
    place.try_out()
    assert place.now == 60
    with pytest.raises(CanaryError, match="no canary"):
        Place(Heard(0, 0)).try_out()


def test_a_job_that_is_run_again_deploys_nothing_twice() -> None:
    place = Place(Heard(4, 0))
    place.try_out()
    asked = place.asked
    place.try_out()
    assert len(place.greengrass.deployments) == 2
    assert place.asked == asked, "what was said to the first run still counts"


def test_only_the_group_is_asked_and_only_for_what_it_said_since_it_had_the_model() -> None:
    place = Place(Heard(4, 0))
    place.try_out()
    made = place.greengrass.deployments[-1]
    assert place.asked == (("a", "b", "c", "d"), int(made["creationTimestamp"].timestamp() * 1000))


def test_a_group_without_devices_is_an_error_and_not_a_free_pass() -> None:
    place = Place(Heard(0, 0))
    place.greengrass.core_devices.clear()
    with pytest.raises(CanaryError, match="no core device"):
        place.try_out()


def test_the_first_deployment_of_a_fleet_needs_no_canaries() -> None:
    place = Place(Heard(0, 0))
    place.greengrass.deployments.clear()
    place.try_out()
    assert place.greengrass.deployments == []


def test_rate_and_abort_threshold_become_the_deployments_job_configuration() -> None:
    assert job_configuration(Rollout()) is None
    assert job_configuration(Rollout(per_minute=50, abort_share=0.1)) == {
        "jobExecutionsRolloutConfig": {"maximumPerMinute": 50},
        "abortConfig": {
            "criteriaList": [
                {
                    "failureType": "FAILED",
                    "action": "CANCEL",
                    "thresholdPercentage": 10.0,
                    "minNumberOfExecutedThings": 10,
                }
            ]
        },
    }


def said(fleet: Fleet, record: RoundRecord, thing: str, outcome: Any, at: datetime) -> None:
    part = Participation(
        fleet=record.fleet,
        round=record.round,
        thing=thing,
        model_outcome=outcome,
        model_received_at=int(at.timestamp() * 1000),
    )
    fleet.clients.rounds.put_item(Item=part.to_item())


@pytest.fixture
def tried(fleet: Fleet, tmp_path: Path) -> tuple[Fleet, RoundRecord, Bundle]:
    """A fleet with one canary, and a round's model that is to be tried out on it for a second."""
    fleet.greengrass.deploy(
        {"targetArn": GROUP_ARN, "components": {GLOBAL_MODEL: {"componentVersion": fleet.current.version}}}
    )
    fleet.greengrass.core_devices[f"{GROUP_ARN.rpartition('/')[0]}/canaries"] = ["press-a"]
    staged = FleetSettings(rollout=Rollout(canary_group="canaries", canary_seconds=1))
    record = make_record(FLEET_NAME, fleet.current, staged)
    fleet.clients.rounds.put_item(Item=record.to_item())
    new = write_bundle(fleet.base, trained(fleet.base.parameters(), 1), tmp_path / "new", version=record.version)
    return fleet, record, new


LATER = datetime(2026, 2, 1, tzinfo=timezone.utc)
BEFORE = datetime(2025, 12, 31, tzinfo=timezone.utc)


def test_three_strangers_do_not_speak_for_the_canaries(tried: tuple[Fleet, RoundRecord, Bundle]) -> None:
    fleet, record, new = tried
    for stranger in ("press-b", "mallory", "210987654321-x"):
        said(fleet, record, stranger, "active", LATER)
    with pytest.raises(CanaryError, match="no canary made it active"):
        prepare_round(new, fleet.clients, record)


def test_a_canary_that_spoke_before_it_had_the_model_has_not_spoken(tried: tuple[Fleet, RoundRecord, Bundle]) -> None:
    fleet, record, new = tried
    said(fleet, record, "press-a", "active", BEFORE)
    with pytest.raises(CanaryError, match="no canary made it active"):
        prepare_round(new, fleet.clients, record)


def test_a_stranger_has_no_veto(tried: tuple[Fleet, RoundRecord, Bundle]) -> None:
    fleet, record, new = tried
    said(fleet, record, "mallory", "refused", LATER)
    said(fleet, record, "press-a", "active", LATER)
    base, _ = prepare_round(new, fleet.clients, record)
    assert base.version == record.version


def test_a_canary_has_one(tried: tuple[Fleet, RoundRecord, Bundle]) -> None:
    fleet, record, new = tried
    said(fleet, record, "press-a", "rolled_back", LATER)
    with pytest.raises(CanaryError, match="1 of 1 canaries refused"):
        prepare_round(new, fleet.clients, record)
