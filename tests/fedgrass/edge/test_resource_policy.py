"""The guard: training keeps within what the device's owner allows, and says why it does not run."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fedgrass.edge import settings
from fedgrass.edge.resource_policy import Block, Pause, ResourcePolicy, UnavailableError
from fedgrass.edge.settings import GuardSettings, TrainerSettings
from fedgrass.edge.system import Reading, Sensors
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.device_messages import ApplicationStatus

IDLE = Reading(5, 5, 0.1, 20, 4 << 30, 4 << 30, temperature=40, battery_percent=80, on_mains=True)


class Place:
    """A device whose state, wall clock and time are the test's."""

    def __init__(self, **limits: Any) -> None:
        self.settings = settings.parse(GuardSettings, limits, "test")
        self.reading = IDLE
        self.now = 0.0
        self.wall = datetime(2026, 1, 1, 12, 0)
        self.guard = ResourcePolicy(
            lambda: self.settings, lambda: self.reading, now=lambda: self.wall, clock=lambda: self.now
        )

    def hold(self) -> Block | None:
        self.now += 2
        return self.guard.hold()


@pytest.mark.parametrize(
    ("limits", "state", "action", "reason"),
    [
        ({"minFreeDiskMb": "100"}, {"disk_free_bytes": 99 << 20}, "decline", "minFreeDiskMb"),
        ({"minFreeMemoryMb": "100"}, {"memory_free_bytes": 99 << 20}, "decline", "minFreeMemoryMb"),
        ({"maxCpuPercent": "70"}, {"others_percent": 71.0}, "wait", "maxCpuPercent"),
        ({"maxTemperature": "60"}, {"temperature": 61.0}, "wait", "maxTemperature"),
        ({"minBatteryPercent": "50"}, {"battery_percent": 0.0, "on_mains": False}, "wait", "minBatteryPercent"),
        ({"onlyOnMains": "true"}, {"on_mains": False}, "wait", "onlyOnMains"),
        ({}, {"read_only": True}, "decline", "the disk is mounted read-only"),
    ],
)
def test_each_limit_holds_training_back_by_its_name_and_lets_it_go_again(
    limits: dict[str, str], state: dict[str, Any], action: str, reason: str
) -> None:
    place = Place(**limits)
    assert place.hold() is None
    place.reading = replace(IDLE, **state)
    hold = place.hold()
    assert hold is not None
    assert (hold.action, reason in hold.reason) == (action, True)
    place.reading = IDLE
    assert place.hold() is None


def test_what_the_platform_does_not_tell_is_no_reason() -> None:
    place = Place(onlyOnMains="true", minBatteryPercent="100", maxTemperature="1")
    place.reading = replace(IDLE, temperature=None, battery_percent=None, on_mains=None)
    assert place.hold() is None


@pytest.mark.parametrize(
    ("window", "hour", "inside"),
    [("22:00-06:00", 23, True), ("22:00-06:00", 5, True), ("22:00-06:00", 6, False), ("09:00-17:00", 12, True),
     ("09:00-17:00", 8, False)],
)  # fmt: skip
def test_training_keeps_to_its_hours(window: str, hour: int, inside: bool) -> None:
    place = Place(window=window)
    place.wall = place.wall.replace(hour=hour)
    hold = place.hold()
    assert (hold is None) == inside
    assert hold is None or window in hold.reason


def test_a_window_that_is_none_is_refused_at_the_start() -> None:
    for wrong in ("nights", "25:00-26:00", "22:00"):
        with pytest.raises(ConfigurationError, match="window"):
            settings.parse(TrainerSettings, {"window": wrong}, "com.fedgrass.Trainer")


def test_a_busy_application_is_left_alone_until_it_is_idle_or_silent_for_too_long() -> None:
    place = Place()
    place.guard.application_said(ApplicationStatus(busy=True, valid_seconds=60))
    hold = place.hold()
    assert hold is not None
    assert "application" in hold.reason
    place.guard.application_said(ApplicationStatus(busy=False))
    assert place.hold() is None
    place.guard.application_said(ApplicationStatus(busy=True, valid_seconds=60))
    place.now += 61
    assert place.hold() is None
    place.settings = GuardSettings(only_when_idle=False)
    place.guard.application_said(ApplicationStatus(busy=True))
    assert place.hold() is None


class Waits(threading.Event):
    """An event whose waiting moves the place's clock instead of the world's, and runs what the test has planned."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        self.place.now += timeout or 0.0
        if self.place.now >= 10:
            self.place.reading = IDLE
        return self.is_set()


def test_a_training_pauses_while_it_must_and_says_so_once_and_when_it_goes_on() -> None:
    place = Place(maxTemperature="60")
    said: list[str] = []
    waits = Waits(place)
    pause = Pause(place.guard, 3600, said.append, clock=lambda: place.now)
    pause(waits)
    assert (waits.waited, said) == ([], [])
    place.reading = replace(IDLE, temperature=70.0)
    place.now = 5.0
    pause(waits)
    assert place.now >= 10
    assert len(said) == 2
    assert "maxTemperature" in said[0]
    assert said[1] == ""


def test_patience_ends_in_a_refusal_that_names_the_reason() -> None:
    place = Place(maxTemperature="60")
    place.reading = replace(IDLE, temperature=70.0)
    pause = Pause(place.guard, 3.5, lambda _reason: None, clock=lambda: place.now)
    with pytest.raises(UnavailableError, match=r"maxTemperature.*waitSeconds"):
        pause(Waits(place))
    assert place.now == pytest.approx(3.5)


def test_where_others_need_the_processor_training_takes_half_of_its_time() -> None:
    place = Place(maxCpuPercent="80")
    place.reading = replace(IDLE, others_percent=50.0)
    waits = Waits(place)
    pause = Pause(place.guard, 3600, lambda _reason: None, clock=lambda: place.now)
    for _ in range(5):
        place.now += 0.25  # a batch
        pause(waits)
    assert waits.waited == [0.25] * 5


def test_the_device_is_measured(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    reading = sensors.read()
    assert reading.disk_free_bytes > 0
    assert reading.memory_free_bytes > 0
    assert 0 <= reading.others_percent <= reading.cpu_percent <= 100


def test_what_is_mounted_read_only_is_seen() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    read_only = next((where for _, where, _, options, *_ in mounts if "ro" in options.split(",")), None)
    if read_only is None:
        pytest.skip("nothing is mounted read-only here")
    assert Sensors(Path(read_only)).read().read_only


def test_what_can_be_written_is_not_read_only(tmp_path: Path) -> None:
    assert not Sensors(tmp_path).read().read_only
