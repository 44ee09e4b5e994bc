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
from fedgrass.edge.logs import Log
from fedgrass.edge.loop import Loop
from fedgrass.edge.model_store import ModelStore
from fedgrass.protocol.messages import ActiveModel, ModelNotice
from fedgrass.protocol.names import MODEL_ACTIVE_TOPIC, MODEL_ADMISSION_TOPIC, MODEL_DEPLOYER, RUNTIME
from tests.fedgrass.edge import digits
from tests.fedgrass.edge.fakes import FakeIpc, wait_until

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
        def stepped() -> Any:
            while self.loop.step():
                pass
            return condition()

        return wait_until(stepped, what)

    @property
    def notices(self) -> list[ModelNotice]:
        assert all(topic == "fedgrass/f/devices/thing-1/model" for topic, _ in self.ipc.cloud)
        return [ModelNotice.decode(payload) for _, payload in self.ipc.cloud]

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
