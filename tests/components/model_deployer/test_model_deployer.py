"""The model deployer: every outcome reaches the cloud once, and the device always knows its active model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.model_deployer.deployer import ModelDeployer
from fedgrass.bundle import INFERENCE, Bundle
from fedgrass.edge.component import Device
from fedgrass.edge.ipc import EXIT_RELAUNCH
from fedgrass.edge.loop import Loop
from fedgrass.edge.model_store import ModelStore
from fedgrass.logs import Log
from fedgrass.personal_models import TUNED, PersonalModels
from fedgrass.protocol.device_messages import ActiveModel, ApplicationStatus
from fedgrass.protocol.messages import Command, ModelNotice, Reply
from fedgrass.protocol.names import (
    APPLICATION_TOPIC,
    MODEL_ACTIVE_TOPIC,
    MODEL_ADMISSION_TOPIC,
    MODEL_DEPLOYER,
    RUNTIME,
)
from tests.fedgrass.edge import digits
from tests.fedgrass.edge.fakes import FakeIpc
from tests.fixtures.waiting import run_until

TOPIC = "fedgrass/f/devices/thing-1"
BASE = Bundle.open(digits.BUNDLE).parameters()


class Place:
    """A device with a model deployer on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ipc = FakeIpc({RUNTIME: {"fleet": "f"}, MODEL_DEPLOYER: {"keep": "2", "rescanSeconds": "30"}})
        self.store = ModelStore(folder / "store")
        self.numbers = itertools.count(1)
        self.deployer: ModelDeployer
        self.loop: Loop
        self.now = 0.0

    def start(self) -> None:
        self.loop = Loop(lambda: self.now)
        device = Device("thing-1", self.folder / "store", self.folder / "store", self.ipc, self.loop, Log("test"))
        self.deployer = ModelDeployer(device)
        self.deployer._outbox._gap = 0.0
        self.deployer.start()

    def admit(self, version: str) -> None:
        """What a model's admission script leaves in the store."""
        shift = next(self.numbers)
        parameters = {name: value + shift for name, value in BASE.items()}
        bundle = digits.version(self.folder / f"artifacts-{shift}", version, parameters)
        with self.store.lock():
            self.store.activate(bundle)
            self.store.record(version, "active", metrics={"accuracy": 0.9})

    def refuse(self, version: str) -> None:
        with self.store.lock():
            self.store.record(version, "refused", reason="worse")

    def until(self, condition: Any, what: str) -> Any:
        return run_until(self.loop, condition, what)

    @property
    def notices(self) -> list[ModelNotice]:
        return [ModelNotice.decode(payload) for topic, payload in self.ipc.cloud if topic == f"{TOPIC}/model"]

    @property
    def replies(self) -> list[Reply]:
        return [Reply.decode(payload) for topic, payload in self.ipc.cloud if topic == f"{TOPIC}/reply"]

    @property
    def active(self) -> str:
        bundle = self.store.active()
        assert bundle is not None
        return bundle.manifest.version

    def command(self, number: str, **fields: Any) -> None:
        command = Command(fleet="f", thing="thing-1", id=number, kind="roll_back", **fields)
        self.ipc.from_cloud(f"{TOPIC}/command", command.encode())

    def application_says(self, **fields: Any) -> None:
        self.ipc.publish_local(APPLICATION_TOPIC, ApplicationStatus(**fields).encode())

    @property
    def announced(self) -> list[ActiveModel]:
        return [ActiveModel.decode(payload) for topic, payload in self.ipc.local if topic == MODEL_ACTIVE_TOPIC]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.deployer.stop()


def test_what_happened_before_the_start_is_told(place: Place) -> None:
    place.admit("1.0.0")
    place.refuse("1.1.0")
    place.start()
    place.until(lambda: len(place.notices) == 2, "told")
    assert [(n.version, n.outcome, n.active_version) for n in place.notices] == [
        ("1.0.0", "active", "1.0.0"),
        ("1.1.0", "refused", "1.0.0"),
    ]
    assert place.notices[1].reason == "worse"
    assert place.announced[-1].version == "1.0.0"
    assert Path(place.announced[-1].path) == place.store.folder / "active" / INFERENCE


def test_an_admission_is_told_as_soon_as_its_notice_comes(place: Place) -> None:
    place.start()
    assert place.announced == []
    place.admit("1.0.0")
    place.ipc.publish_local(MODEL_ADMISSION_TOPIC, b"anything")
    place.until(lambda: len(place.notices) == 1, "told")
    assert [active.version for active in place.announced] == ["1.0.0"]


def test_a_model_of_the_devices_own_within_a_version_is_announced_by_another_digest(place: Place) -> None:
    place.admit("1.0.0")
    place.start()
    active = place.store.active()
    assert active is not None
    kept = PersonalModels(place.store.device.personal, active.manifest, "since").kept(TUNED)
    kept.path.parent.mkdir()
    kept.keep({}, digits.trained())
    with place.store.lock():
        place.store.activate(active, TUNED)
    place.now += 31
    place.until(lambda: len(place.announced) == 2, "told")
    applied = place.store.applied()
    assert applied is not None
    fleets, own = place.announced
    assert (fleets.version, fleets.path) == (own.version, own.path)
    assert fleets.parameters_sha256 == active.manifest.parameters_sha256
    assert own.parameters_sha256 == applied.manifest.parameters_sha256 != fleets.parameters_sha256


def test_a_lost_notice_costs_time_and_nothing_else(place: Place) -> None:
    place.start()
    place.admit("1.0.0")
    place.now += 31
    place.until(lambda: len(place.notices) == 1, "told at the next look")


def test_each_outcome_is_told_once_over_restarts(place: Place) -> None:
    place.admit("1.0.0")
    for _ in range(3):
        place.start()
        place.until(lambda: len(place.deployer._outbox) == 0, "sent")
        place.deployer.stop()
    assert len(place.notices) == 1
    place.start()


def test_a_crash_between_handing_on_and_noting_tells_it_once(place: Place) -> None:
    place.admit("1.0.0")
    place.start()
    place.until(lambda: len(place.notices) == 1, "told")
    place.deployer.stop()
    (place.store.folder / "reported").unlink()
    place.start()
    place.until(lambda: len(place.deployer._outbox) == 0, "sent")
    assert len(place.notices) == 1


def test_offline_outcomes_wait_in_order(place: Place) -> None:
    place.ipc.offline = True
    place.start()
    place.admit("1.0.0")
    place.refuse("1.1.0")
    place.admit("1.2.0")
    place.deployer.scan()
    place.deployer.stop()
    place.ipc.offline = False
    place.start()
    place.until(lambda: len(place.notices) == 3, "told")
    assert [notice.version for notice in place.notices] == ["1.0.0", "1.1.0", "1.2.0"]


def test_only_the_last_models_stay_on_the_device(place: Place) -> None:
    place.start()
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        place.admit(version)
        place.deployer.scan()
    assert [bundle.manifest.version for bundle in place.store.models()] == ["1.2.0", "1.1.0"]


def test_settings_change_without_a_restart_but_not_the_fleet(place: Place) -> None:
    place.start()
    place.ipc.change(MODEL_DEPLOYER, {"keep": "1"})
    place.until(lambda: place.deployer._settings.own.keep == 1, "taken over")
    place.ipc.change(MODEL_DEPLOYER, {"keep": "none"})
    place.until(lambda: place.deployer._settings.own.keep == 1, "kept what was good")
    place.ipc.change(MODEL_DEPLOYER, {"keep": "2"})
    place.ipc.change(RUNTIME, {"fleet": "g"})
    assert place.loop.run() == EXIT_RELAUNCH


def test_an_application_that_is_unwell_with_its_model_gets_the_one_before(place: Place) -> None:
    place.admit("1.1.0")
    place.admit("1.2.0")
    place.start()
    place.application_says(healthy=False, model_version="1.1.0", reason="an old word, about another model")
    place.application_says(healthy=True, model_version="1.2.0")
    place.until(lambda: len(place.notices) == 2, "told of both")
    assert place.active == "1.2.0"
    for _ in range(2):
        place.application_says(healthy=False, model_version="1.2.0", reason="latency tripled")
    place.until(lambda: len(place.notices) == 3, "told of the roll-back")
    last = place.notices[-1]
    assert (last.version, last.outcome, last.active_version) == ("1.2.0", "rolled_back", "1.1.0")
    assert "latency tripled" in last.reason
    assert (place.active, place.announced[-1].version) == ("1.1.0", "1.1.0")
    # There is nothing left to go back to: 1.2.0 stays out.
    place.application_says(healthy=False, model_version="1.1.0")
    place.until(lambda: "stays" in place.deployer._log.last_error, "said why not")
    assert place.active == "1.1.0"


def test_a_command_rolls_the_model_back_once_and_is_answered_once(place: Place) -> None:
    place.admit("1.1.0")
    place.admit("1.2.0")
    place.start()
    for _ in range(3):
        place.command("a", reason="too many false alarms")
    [reply] = place.until(lambda: place.replies, "answered")
    assert (reply.id, reply.status, reply.version) == ("a", "done", "1.1.0")
    place.command("b", version="1.2.0")  # named, it comes back
    place.until(lambda: len(place.replies) == 2, "answered")
    assert place.active == "1.2.0"
    place.command("c", version="1.0.9")
    place.until(lambda: len(place.replies) == 3, "answered")
    assert place.replies[-1].status == "refused"
    assert "1.0.9" in place.replies[-1].reason
    assert place.active == "1.2.0"
    assert [reply.id for reply in place.replies] == ["a", "b", "c"]


def test_a_command_that_a_crash_cut_short_is_finished_and_not_repeated(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.1.0", "1.2.0"):
        place.admit(version)
    place.start()
    monkeypatch.setattr(place.deployer._commands, "answer", lambda _reply: None)
    place.command("a")
    place.until(lambda: place.active == "1.1.0", "rolled back")
    place.start()
    [reply] = place.until(lambda: place.replies, "answered")
    assert (reply.status, reply.version, place.active) == ("done", "1.1.0", "1.1.0")
