"""Whether training may run on this device now, by the owner's limits.

Disk and memory that are missing when a round begins are a reason to decline it: waiting frees neither. Everything else
passes, so the trainer waits for it, before a training and between two of its batches, and declines when it has waited for
``waitSeconds`` in all. Where other programs use more than half of ``maxCpuPercent`` it goes at half speed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from datetime import time as time_of_day
from typing import Literal, Protocol

from fedgrass.edge.settings import GuardSettings
from fedgrass.edge.system import Reading
from fedgrass.errors import FedgrassError
from fedgrass.protocol.device_messages import ApplicationStatus

# Between two measurements: batches may take a millisecond, and reading sensors as often would cost more than
# training.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Block:
    """Why not to train now, and whether waiting may help."""

    action: Literal["wait", "decline"]
    reason: str


class UnavailableError(FedgrassError):
    """The device stayed unavailable for longer than `waitSeconds`.

    Cause: The device was busy, hot, off its mains, or outside its `window` for longer than `waitSeconds`.

    Remedy: Nothing, if that is so; else widen the limits of com.fedgrass.Trainer
    ([device](device.md#when-a-device-trains)).
    """

    code = "held"


class ResourcePolicy:
    """The owner's limits against the device's state; may be asked from any thread.

    Parameters
    ----------
    settings
        Asked each time, as they may change.
    read
        Measures the device.
    now
        The device's own wall clock, in its own zone: the time window is the owner's.
    clock
        Seconds for which an application's report counts.
    """

    def __init__(
        self,
        settings: Callable[[], GuardSettings],
        read: Callable[[], Reading],
        *,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._read = read
        self._now = now
        self._clock = clock
        self._busy_until = 0.0
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._seen: tuple[Block | None, bool] = (None, False)

    def application_said(self, status: ApplicationStatus) -> None:
        """Take in whether the application is busy; that holds for as long as it says."""
        with self._lock:
            # An application that dies while busy must not block training for ever, so its report expires.
            self._busy_until = self._clock() + status.valid_seconds if status.busy else 0.0
            # The application's report counts at once, not at the next second's look.
            self._looked_at = None

    def hold(self) -> Block | None:
        """Return why not to train now; None if nothing is against it. Measures once a second at most."""
        return self._look()[0]

    def is_slow(self) -> bool:
        """Whether to leave the processor to other programs half of the time."""
        return self._look()[1]

    def _look(self) -> tuple[Block | None, bool]:
        with self._lock:
            if self._looked_at is None or self._clock() - self._looked_at >= _LOOK_SECONDS:
                self._looked_at = self._clock()
                settings, reading = self._settings(), self._read()
                # Half speed from half of the limit on: so it does not swing between training at full speed and not at
                # all.
                slow = settings.max_cpu_percent < 100 and reading.others_percent > settings.max_cpu_percent / 2
                self._seen = self._judged(settings, reading), slow
            return self._seen

    def _judged(self, settings: GuardSettings, reading: Reading) -> Block | None:
        # The order is that of gravity: what waiting cannot mend comes first.
        if reading.read_only:
            return Block("decline", "the disk is mounted read-only")
        if reading.disk_free_bytes < settings.min_free_disk_mb << 20:
            free = reading.disk_free_bytes >> 20
            return Block("decline", f"{free} MB of disk are free, minFreeDiskMb is {settings.min_free_disk_mb}")
        if reading.memory_free_bytes < settings.min_free_memory_mb << 20:
            free = reading.memory_free_bytes >> 20
            return Block("decline", f"{free} MB of memory are free, minFreeMemoryMb is {settings.min_free_memory_mb}")
        reason = _passing(settings, reading, self._now().time())
        if not reason and settings.only_when_idle and self._clock() < self._busy_until:
            reason = "the application is busy (onlyWhenIdle)"
        return Block("wait", reason) if reason else None


def _passing(settings: GuardSettings, reading: Reading, now: time_of_day) -> str:
    """Return what is against training now but will pass, or nothing."""
    if settings.window is not None and not settings.window.includes(now):
        return f"it is {now:%H:%M} on this device, window is {settings.window}"
    if settings.max_cpu_percent < 100 and reading.others_percent > settings.max_cpu_percent:
        return (
            f"other programs use {reading.others_percent} % of the CPU, maxCpuPercent is {settings.max_cpu_percent:g}"
        )
    if reading.temperature is not None and reading.temperature > settings.max_temperature:
        return f"the device has {reading.temperature:.0f} °C, maxTemperature is {settings.max_temperature:g}"
    # `is False`, as None means that the platform does not tell, and most gateways have no battery.
    if reading.on_mains is False and settings.only_on_mains:
        return "the device runs on its battery (onlyOnMains)"
    battery = reading.battery_percent
    if battery is not None and not reading.on_mains and battery < settings.min_battery_percent:
        return f"the battery holds {battery:.0f} %, minBatteryPercent is {settings.min_battery_percent:g}"
    return ""


class Limits(Protocol):
    """What a training keeps to: a `ResourcePolicy`, or what it was told by one."""

    def hold(self) -> Block | None:
        """Return why not to train now; None if nothing is against it."""
        ...

    def is_slow(self) -> bool:
        """Whether to leave the processor to other programs half of the time."""
        ...


class Pause:
    """What a training does between two batches: nothing, half speed, or wait until it may go on.

    Parameters
    ----------
    guard
        Says why not to train now.
    patience
        Seconds that all waiting together may take.
    told
        Called with the reason when waiting begins, and with nothing when it ends.
    """

    def __init__(
        self,
        guard: Limits,
        patience: float,
        told: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = guard
        # One budget for the whole round: a device that is blocked now and then must not take a multiple of
        # waitSeconds.
        self.left = patience
        self._told = told
        self.clock = clock
        self._went_on = clock()

    def __call__(self, cancelled: threading.Event, over: Callable[[], bool] = lambda: False) -> None:
        """Wait for as long as there is a reason; returns at once when ``cancelled``, or when nothing is left to do.

        Raises
        ------
        UnavailableError
            When the patience is at its end.
        """
        if self._guard.hold() is not None:
            self._wait(cancelled, over)
        elif self._guard.is_slow():
            # As long as the last batch took: that is half speed.
            cancelled.wait(min(self.clock() - self._went_on, _LOOK_SECONDS))
        self._went_on = self.clock()

    def _wait(self, cancelled: threading.Event, over: Callable[[], bool]) -> None:
        said = ""
        while (hold := self._guard.hold()) is not None and not cancelled.is_set() and not over():
            if self.left <= 0:
                raise UnavailableError(f"{hold.reason}; the trainer has waited for waitSeconds")
            # Once per reason, not once a second: each goes to the application and to the log.
            if hold.reason != said:
                self._told(said := hold.reason)
            began = self.clock()
            cancelled.wait(min(_LOOK_SECONDS, self.left))
            # By the clock rather than by the time asked for: a suspended device wakes up hours later.
            self.left -= self.clock() - began
        if said:
            self._told("")
