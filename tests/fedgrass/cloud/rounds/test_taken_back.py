"""A model that the fleet refuses: taken back, once, whenever the cloud is told; nothing refused stays in the deployment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from moto import mock_aws

from fedgrass.cloud.rounds.abort_round import abort_round
from fedgrass.cloud.rounds.await_rollout import await_rollout
from fedgrass.cloud.rounds.close_round import close_round
from fedgrass.cloud.rounds.record_model import record_model
from fedgrass.protocol.fleet_state import HandLock, Released
from fedgrass.protocol.names import GLOBAL_MODEL, parameters_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import free_hand, load_state, save_settings, set_current_model, take_hand
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fedgrass.cloud.rounds.harness import BASE, FLEET, Fleet
from tests.fedgrass.cloud.rounds.test_ending import CLOSE, ROLLOUT, failure, release
from tests.fixtures.doubles import double

GROUP = "arn:aws:iot:us-east-1:123456789012:thinggroup/digits"
OTHERS = {"com.fedgrass.Runtime": {"componentVersion": "1.0.0", "configurationUpdate": {"merge": '{"fleet":"digits"}'}}}


class Place:
    """A fleet that has 1.0.0 on its devices, and its Greengrass."""

    def __init__(self, things: str = "abc", **settings: Any) -> None:
        self.fleet = Fleet(FleetSettings.model_validate(settings))
        self.greengrass = FakeGreengrass()
        self.fleet.services.greengrass = double(self.greengrass)
        set_current_model(self.fleet.rounds, FLEET, BASE, publish=True)
        self.fleet.heartbeats(*things)
        self.deploy("1.0.0")

    def deploy(self, version: str) -> None:
        components = {**OTHERS, GLOBAL_MODEL: {"componentVersion": version}}
        self.greengrass.deploy({"targetArn": GROUP, "components": components, "deploymentName": "digits"})

    def release(self) -> None:
        release(self.fleet)
        self.deploy("1.1.0")
        await_rollout(self.fleet.services, ROLLOUT)

    def say(self, thing: str, outcome: str = "refused", version: str = "1.1.0") -> None:
        record_model(self.fleet.services, self.fleet.model(thing, outcome, version, reason="worse here"))

    @property
    def state(self) -> Any:
        return load_state(self.fleet.rounds, FLEET)

    @property
    def deployed(self) -> str:
        latest = self.greengrass.latest
        assert {name: what for name, what in latest["components"].items() if name != GLOBAL_MODEL} == OTHERS
        assert latest["deploymentName"] == "digits"
        return str(latest["components"][GLOBAL_MODEL]["componentVersion"])

    @property
    def is_taken_back(self) -> bool:
        return {self.state.model.version, self.state.released.version, self.deployed} == {"1.0.0"}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield Place()


def test_a_model_that_most_of_the_fleet_refuses_is_taken_back_while_it_rolls_out(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.release()
    place.say("a")
    assert not place.is_taken_back
    assert "rollout" not in place.fleet.step_functions.answers
    place.say("b")
    assert place.is_taken_back
    assert "rollout" in place.fleet.step_functions.answers  # the others are not waited for: they get another deployment
    assert capsys.readouterr().out.count('"ModelsTakenBack": 1') == 1
    place.say("c")
    close_round(place.fleet.services, CLOSE)
    record = place.fleet.round()
    assert (record.outcome, record.reason) == ("refused", "2 of 3 devices refused it; 1.0.0 is the fleet's model again")
    assert (place.is_taken_back, len(place.greengrass.deployments)) == (True, 3)
    assert place.fleet.open("two").base == BASE


def test_a_few_refusals_leave_the_model_to_the_others(place: Place) -> None:
    place.release()
    place.say("a")
    place.say("b", "active")
    place.say("c", "active")
    close_round(place.fleet.services, CLOSE)
    assert (place.fleet.round().outcome, place.deployed) == ("released", "1.1.0")


def test_the_settings_name_the_share(place: Place) -> None:
    save_settings(place.fleet.rounds, FLEET, FleetSettings.model_validate({"rollout": {"abort_share": 0.2}}))
    place.release()
    place.say("a")
    assert place.is_taken_back


def test_deployments_that_fail_leave_it_to_aws(place: Place) -> None:
    save_settings(place.fleet.rounds, FLEET, FleetSettings.model_validate({"rollout": {"refusal": "fail"}}))
    place.release()
    for thing in "abc":
        place.say(thing)
    close_round(place.fleet.services, CLOSE)
    assert (place.fleet.round().outcome, place.fleet.round().refused, place.deployed) == ("released", 3, "1.1.0")


def test_told_twice_it_is_taken_back_once(place: Place) -> None:
    place.release()
    for _ in range(3):
        for thing in "ab":
            place.say(thing)
    assert (place.is_taken_back, len(place.greengrass.deployments)) == (True, 3)


def test_told_after_the_close_it_is_taken_back_all_the_same(place: Place) -> None:
    place.release()
    close_round(place.fleet.services, CLOSE)
    assert place.fleet.round().outcome == "released"
    place.say("a")
    place.say("b")
    assert (place.is_taken_back, place.fleet.round().outcome) == (True, "refused")


def test_told_while_the_next_round_runs_it_is_taken_back_when_that_has_ended(place: Place) -> None:
    place.release()
    close_round(place.fleet.services, CLOSE)
    place.fleet.open("two")
    place.say("a")
    place.say("b")
    assert (place.deployed, place.state.model.version) == ("1.1.0", "1.1.0")
    abort_round(place.fleet.services, failure().model_copy(update={"execution": "two"}))
    assert (place.is_taken_back, place.fleet.round(1).outcome) == (True, "refused")


def test_while_a_person_has_the_fleet_in_hand_nothing_is_taken_back_and_the_next_opening_does_it(place: Place) -> None:
    place.release()
    close_round(place.fleet.services, CLOSE)
    now = int(place.fleet.now.timestamp())
    lock = HandLock(action="roll-back", version="1.0.0", holder="somebody", until=now + 900)
    assert take_hand(place.fleet.rounds, FLEET, lock, now)
    place.say("a")
    place.say("b")
    assert (place.deployed, place.state.model.version) == ("1.1.0", "1.1.0")
    free_hand(place.fleet.rounds, FLEET, lock)
    assert place.fleet.open("two").base == BASE
    assert place.is_taken_back


def test_a_function_that_ends_between_the_decision_and_the_deployment_is_made_up_for(place: Place) -> None:
    place.release()
    place.say("a")

    def busy() -> None:
        place.greengrass.before_create = lambda: None
        raise TimeoutError

    place.greengrass.before_create = busy
    with pytest.raises(TimeoutError):
        place.say("b")
    assert (place.deployed, place.state.released.version) == ("1.1.0", "1.0.0")
    place.say("b")  # as AWS repeats it
    assert place.is_taken_back


def test_who_was_not_there_takes_nothing_back(place: Place) -> None:
    place.release()
    place.fleet.heartbeats("d", "e", "f")
    for thing in "defgh":
        place.say(thing)
    assert place.deployed == "1.1.0"


def publish(place: Place) -> None:
    model = BASE.model_copy(
        update={"version": "2.0.0", "parameters_key": parameters_key(FLEET, "2.0.0"), "parameters_sha256": "9" * 64}
    )
    place.fleet.now = place.fleet.now.replace(year=2100)  # a publication's time is the operator's own
    place.fleet.heartbeats("a", "b", "c")
    assert set_current_model(place.fleet.rounds, FLEET, model, publish=True)
    place.deploy("2.0.0")


def test_a_published_model_that_most_devices_refuse_is_taken_back_and_strangers_do_not_count(place: Place) -> None:
    publish(place)
    for thing in "axyz":
        place.say(thing, version="2.0.0")
    place.say("b", "active", "2.0.0")
    assert place.deployed == "2.0.0"
    place.say("c", version="2.0.0")
    assert place.is_taken_back


def test_a_model_that_was_deployed_past_the_state_is_put_back_too(place: Place) -> None:
    place.deploy("1.900.0")
    place.say("a", version="1.900.0")
    assert place.deployed == "1.900.0"
    place.say("b", version="1.900.0")
    place.say("c", version="1.900.0")
    assert (place.is_taken_back, len(place.greengrass.deployments)) == (True, 3)


def test_what_a_person_chose_by_name_stays(place: Place) -> None:
    place.release()
    for thing in "ab":
        place.say(thing)
    close_round(place.fleet.services, CLOSE)
    chosen = place.state.released_next(place.state.model, "hand")
    place.fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "state"},
        UpdateExpression="SET released = :released",
        ExpressionAttributeValues={
            ":released": chosen.model_copy(update={"version": "1.1.0"}).model_dump(exclude_none=True)
        },
    )
    place.deploy("1.1.0")
    for thing in "abc":
        place.say(thing)
    assert place.deployed == "1.1.0"


def test_a_fleet_s_first_model_has_none_to_go_back_to(place: Place) -> None:
    state = place.state
    assert state.released == Released(version="1.0.0", by="publish", model=BASE, at=state.released.at)
    place.fleet.now = place.fleet.now.replace(year=2100)
    place.fleet.heartbeats("a", "b", "c")
    for thing in "abc":
        place.say(thing, version="1.0.0")
    assert place.deployed == "1.0.0"
