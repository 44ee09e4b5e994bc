"""The heartbeat: whether a device is alive, and whether it would train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedgrass
from components.heartbeat.heartbeat import Heartbeat
from fedgrass.bundle import Bundle
from fedgrass.edge.component import Device, version_of
from fedgrass.edge.ipc import EXIT_RELAUNCH
from fedgrass.edge.life import Life
from fedgrass.edge.loop import Loop
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.systemd import Unit
from fedgrass.logs import Log
from fedgrass.protocol import device_messages
from fedgrass.protocol.device_messages import ActiveModel, Tally, TrainerStatus
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.message import MAX_MESSAGE_BYTES
from fedgrass.protocol.names import (
    HEARTBEAT,
    MODEL_ACTIVE_TOPIC,
    MODEL_DEPLOYER,
    RUNTIME,
    TRAINER,
    TRAINER_STATUS_TOPIC,
)
from tests.fedgrass.edge import digits
from tests.fedgrass.edge.fakes import FakeIpc
from tests.fixtures.waiting import run_until

DEFENDER = "$aws/things/thing-1/defender/metrics/json"


class Place:
    """A device with a heartbeat on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ipc = FakeIpc({RUNTIME: {"fleet": "f"}, HEARTBEAT: {"intervalSeconds": "30", "defenderSeconds": "300"}})
        self.now = 0.0
        self.loop = Loop(lambda: self.now)
        (folder / "work").mkdir()
        self.device = Device("thing-1", folder / "work", folder / "store", self.ipc, self.loop, Log("test"))
        self.unit: Unit | None = None
        self.heartbeat = Heartbeat(self.device, clock=lambda: self.now, unit=lambda _component: self.unit)
        self.heartbeat._outbox._gap = 0.0
        self.heartbeat._outbox._clock = lambda: self.now

    @property
    def beats(self) -> list[device_messages.Heartbeat]:
        assert {topic for topic, _ in self.ipc.cloud} <= {"fedgrass/f/devices/thing-1/heartbeat", DEFENDER}
        return [device_messages.Heartbeat.decode(payload) for topic, payload in self.ipc.cloud if topic != DEFENDER]

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for topic, payload in self.ipc.cloud if topic == DEFENDER]

    def until(self, condition: Any, what: str) -> Any:
        return run_until(self.loop, condition, what)

    def trainer_starts(self) -> Life:
        """Be the trainer's process, for as long as what is returned lives."""
        work = self.folder / TRAINER
        work.mkdir(exist_ok=True)
        return Life(work)

    def look(self, seconds: float) -> None:
        """Let time pass, with the looks that fall into it."""
        for _ in range(int(seconds / 2)):
            self.now += 2.0
            while self.loop.step():
                pass

    def trainer_says(self, **status: Any) -> None:
        self.ipc.publish_local(TRAINER_STATUS_TOPIC, TrainerStatus(**status).encode())

    def beat(self) -> device_messages.Heartbeat:
        """Wait for the next beat."""
        self.until(lambda: len(self.heartbeat._outbox) == 0, "what is under way")
        before = len(self.ipc.cloud)
        self.now += 34
        self.until(lambda: len(self.ipc.cloud) > before, "beat")
        return self.beats[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.heartbeat.stop()


def test_the_first_beat_comes_at_once(place: Place) -> None:
    place.heartbeat.start()
    [beat] = place.until(lambda: place.beats, "beat")
    assert (beat.fleet, beat.thing, beat.interval_seconds) == ("f", "thing-1", 30)
    assert (beat.able, beat.reason) == (False, "the trainer has not reported yet")
    assert beat.disk_free_bytes > 0
    assert beat.memory_percent > 0


def test_beats_come_at_the_interval_less_or_more_a_tenth(place: Place) -> None:
    place.heartbeat.start()
    place.until(lambda: len(place.beats) == 1, "first")
    place.now = 26.9
    while place.loop.step():
        pass
    assert len(place.beats) == 1
    for count in range(2, 20):
        place.now += 33.1
        place.until(lambda count=count: len(place.beats) == count, "next")


def test_its_process_names_itself_at_first_and_at_every_tenth_beat(place: Place) -> None:
    place.heartbeat.start()
    [first] = place.until(lambda: place.beats, "beat")
    assert (len(first.instance), first.up_seconds) == (8, 0.0)
    for _ in range(20):
        place.beat()
    named = [beat for beat in place.beats[1:] if beat.instance]
    assert [beat.instance for beat in named] == [first.instance] * 2
    assert 300 <= named[0].up_seconds < 345
    (place.folder / "other").mkdir()
    other = Place(place.folder / "other")
    other.heartbeat.start()
    assert other.until(lambda: other.beats, "beat")[0].instance != first.instance
    other.heartbeat.stop()


def test_a_change_of_ability_is_told_at_once_and_other_changes_wait(place: Place) -> None:
    place.heartbeat.start()
    place.until(lambda: len(place.beats) == 1, "first")
    place.trainer_says(examples=40)
    beat = place.until(lambda: len(place.beats) == 2 and place.beats[-1], "able")
    assert (beat.able, beat.reason, beat.examples) == (True, "", 40)
    place.trainer_says(state="training", round=3, epoch=1, epochs=5, examples=40)
    place.trainer_says(able=False, reason="no disk", examples=40)
    beat = place.until(lambda: len(place.beats) == 3 and place.beats[-1], "unable")
    assert (beat.able, beat.reason) == (False, "no disk")
    place.trainer_says(state="training", round=3, epoch=2, epochs=5, examples=40, able=False, reason="no disk")
    assert place.beat().trainer.epoch == 2
    assert len(place.beats) == 4


def test_a_trainer_that_falls_silent_is_not_able(place: Place) -> None:
    place.heartbeat.start()
    place.trainer_says(examples=40)
    place.until(lambda: place.beats and place.beats[-1].able, "able")
    for _ in range(4):
        place.beat()
    assert not place.beats[-1].able
    assert "silent" in place.beats[-1].reason


def test_the_active_model_and_the_components_versions_are_told(place: Place) -> None:
    place.heartbeat.start()
    store = ModelStore(place.folder / "store")
    with store.lock():
        store.activate(Bundle.open(digits.BUNDLE))
    place.trainer_says(component_version="1.2.3")
    active = ActiveModel(version="1.0.0", path="/x", parameters_sha256="0" * 64, component_version="1.4.0")
    place.ipc.publish_local(MODEL_ACTIVE_TOPIC, active.encode())
    beat = place.beat()
    assert beat.model_version == "1.0.0"
    assert beat.components == {
        RUNTIME: fedgrass.__version__,
        HEARTBEAT: fedgrass.__version__,
        TRAINER: "1.2.3",
        MODEL_DEPLOYER: "1.4.0",
    }


def test_the_longest_reason_in_any_script_fits_into_a_beat(place: Place) -> None:
    place.heartbeat.start()
    place.trainer_says(able=False, reason="\U0001f600" * 500, component_version="v" * 64)
    assert place.beat().reason == "\U0001f600" * 125  # bounds are in bytes


def test_what_is_no_status_is_ignored(place: Place) -> None:
    place.heartbeat.start()
    for payload in (b"", b"{", b'{"state": "dancing"}', b"\xff" * 5000):
        place.ipc.publish_local(TRAINER_STATUS_TOPIC, payload)
        place.ipc.publish_local(MODEL_ACTIVE_TOPIC, payload)
    assert not place.beat().able


def test_offline_only_the_newest_beat_waits(place: Place) -> None:
    place.ipc.offline = True
    place.heartbeat.start()
    for _ in range(5):
        place.now += 34
        while place.loop.step():
            pass
    place.trainer_says(examples=7)
    while place.loop.step():
        pass
    place.ipc.offline = False
    place.now += 20
    place.heartbeat._outbox.send_next()
    assert [beat.examples for beat in place.beats] == [7]


def test_settings_change_without_a_restart_but_not_the_fleet(place: Place) -> None:
    place.heartbeat.start()
    place.ipc.change(HEARTBEAT, {"intervalSeconds": "5"})
    assert place.beat().interval_seconds == 5
    place.ipc.change(RUNTIME, {"fleet": "g"})
    assert place.loop.run() == EXIT_RELAUNCH


def test_a_component_knows_its_version_from_where_the_nucleus_unpacked_it() -> None:
    path = (
        "/greengrass/v2/packages/artifacts-unarchived/com.fedgrass.Trainer/1.4.2/trainer/components/trainer/trainer.py"
    )
    assert version_of(TRAINER, path) == "1.4.2"
    assert version_of(TRAINER, "/checkout/components/trainer/trainer.py") == fedgrass.__version__


def test_device_defender_hears_of_load_network_and_training(place: Place) -> None:
    place.heartbeat.start()
    tally = Tally(taken=7, declined=2, failed=3, failed_in_a_row=1, training_seconds=12.5)
    place.trainer_says(tally=tally)
    place.now = 299.0
    place.until(lambda: len(place.heartbeat._outbox) == 0, "beats")
    assert place.reports == []
    place.now = 301.0
    [report] = place.until(lambda: place.reports, "a report")
    assert report["header"]["version"] == "1.0"
    assert set(report["metrics"]["network_stats"]) == {"bytes_in", "bytes_out", "packets_in", "packets_out"}
    custom = {name: value for name, [value] in report["custom_metrics"].items()}
    assert 0 <= custom.pop("fedgrass:f:cpu_percent")["number"] <= 100
    assert 0 < custom.pop("fedgrass:f:memory_percent")["number"] <= 100
    assert custom == {
        "fedgrass:f:training_seconds": {"number": 12.5},
        "fedgrass:f:rounds_taken": {"number": 7},
        "fedgrass:f:rounds_declined": {"number": 2},
        "fedgrass:f:rounds_failed": {"number": 3},
        "fedgrass:f:rounds_failed_in_a_row": {"number": 1},
    }
    place.now += 300
    later = place.until(lambda: len(place.reports) == 2 and place.reports[1], "another")
    assert later["header"]["report_id"] > report["header"]["report_id"]


def test_a_beat_names_the_components_that_are_silent_and_what_went_wrong(place: Place) -> None:
    with ModelStore(place.folder / "store").lock():
        ModelStore(place.folder / "store").activate(Bundle.open(digits.BUNDLE))
    place.heartbeat.start()
    place.trainer_says(last_error="upload failed, trying again: AccessDenied")
    beat = place.beat()
    assert beat.silent == ()
    assert beat.errors == {TRAINER: "upload failed, trying again: AccessDenied"}
    place.now += 121
    place.until(lambda: set(place.beats[-1].silent) == {TRAINER, MODEL_DEPLOYER}, "silence noticed")


def test_a_trainer_that_died_is_told_of_in_ten_seconds_and_so_is_its_return(place: Place) -> None:
    life = place.trainer_starts()
    place.heartbeat.start()
    place.trainer_says()
    place.until(lambda: place.beats and place.beats[-1].able, "able")
    life._file.close()  # what the kernel does when the process dies
    place.look(10)
    beat = place.until(lambda: not place.beats[-1].able and place.beats[-1], "told")
    assert beat.reason.startswith("the trainer does not run (died ")
    again = place.trainer_starts()
    place.look(2)
    place.until(lambda: place.beats[-1].able, "told that it is back")
    again._file.close()


def test_a_trainer_that_only_starts_anew_is_no_trouble(place: Place) -> None:
    life = place.trainer_starts()
    place.heartbeat.start()
    place.trainer_says()
    place.until(lambda: place.beats and place.beats[-1].able, "able")
    life._file.close()
    place.look(4)
    again = place.trainer_starts()
    place.look(10)
    assert all(beat.able for beat in place.beats[1:])
    again._file.close()


@pytest.mark.parametrize(
    ("code", "unit", "words"),
    [
        (None, Unit(True, "signal 9 (SIGKILL)"), "(died by signal 9 (SIGKILL) 0 s ago; the nucleus has given it up: deploy"),
        (None, Unit(False, "signal 11 (SIGSEGV)"), "(died by signal 11 (SIGSEGV) 6 s ago)"),
        (0, None, "(stopped 6 s ago)"),
        (0, Unit(True, "memory"), "(the device ran out of memory 0 s ago; the nucleus has given it up: deploy again)"),
        (78, Unit(True, "exit code 78"), "(ended with code 78 0 s ago; the nucleus has given it up: deploy again)"),
    ],
)  # fmt: skip
def test_the_cause_is_named_as_far_as_it_can_be_seen(
    place: Place, code: int | None, unit: Unit | None, words: str
) -> None:
    life = place.trainer_starts()
    place.heartbeat.start()
    place.trainer_says()
    place.until(lambda: place.beats and place.beats[-1].able, "able")
    if code is not None:
        life.ends(code)
    life._file.close()
    place.unit = unit
    place.look(12)
    assert words in place.until(lambda: not place.beats[-1].able and place.beats[-1], "told").reason


@pytest.mark.parametrize("letter", ["x", "ü", "界", "🙂", "\x01", '"', "\\"], ids=ascii)
@pytest.mark.parametrize("able", [True, False])
def test_a_heartbeat_reaches_every_nucleus_whatever_the_texts_are_made_of(
    place: Place, letter: str, able: bool
) -> None:
    tags = {f"{name}" + "t" * 31: "v" * 40 for name in "abcdefgh"}
    place.ipc.configurations[RUNTIME]["tags"] = tags
    place.heartbeat = Heartbeat(place.device, clock=lambda: place.now, unit=lambda _component: None)
    place.heartbeat.start()
    text = letter.encode(errors="replace").decode()
    odd = 1 / 3e-7  # as many digits as a float has
    drift = Drift(profile=999_999, rows=1 << 53, inputs=1 / 3, feature=4095, distance=odd % 1e6, scores=1 / 3)
    drift = drift.model_copy(update={"inputs_change": 200 / 3, "scores_change": 1e-5 / 3})
    status = TrainerStatus(
        able=able, reason=text * 500, last_error=text * 200, component_version=text * 64, drift=drift
    )
    place.heartbeat._trainer = status  # not every text of so many letters gets through the device's own bound
    digest = "0" * 64
    said = ActiveModel(
        version="1.1.0", path="/x", parameters_sha256=digest, last_error=text * 200, component_version=text * 64
    )
    place.heartbeat.deployer_said(said.encode())
    place.heartbeat._log.trouble(letter * 3000)
    place.until(lambda: len(place.heartbeat._outbox) == 0, "the first beats")
    beat = place.beat()
    assert beat.able is able
    assert beat.tags == tags
    assert beat.drift == drift
    assert beat.trainer.drift is None
    assert beat.errors[HEARTBEAT].startswith(text)
    assert all(len(payload) <= MAX_MESSAGE_BYTES for _, payload in place.ipc.cloud)


def test_a_heartbeat_that_starts_anew_goes_by_what_the_running_trainer_said_last(place: Place) -> None:
    life = place.trainer_starts()
    place.heartbeat.start()
    place.trainer_says(examples=7)
    place.until(lambda: place.beats and place.beats[-1].able, "able")
    place.heartbeat.stop()
    for runs in (True, False):
        if not runs:
            life._file.close()
        again = Heartbeat(place.device, clock=lambda: place.now, unit=lambda _component: None)
        before = len(place.beats)
        again.start()
        beat = place.until(lambda before=before: len(place.beats) > before and place.beats[-1], "beat")
        again.stop()
        assert (beat.able, beat.examples) == ((True, 7) if runs else (False, 0))
