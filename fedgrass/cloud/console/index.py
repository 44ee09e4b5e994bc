"""A summary of every device, kept in memory: pages of a large fleet are counted, filtered and cut from it.

Reading ten thousand devices takes seconds, which no page should wait for. So they are read in the background while someone
looks, and what a page shows of each device is read again by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from fedgrass.protocol.drift import Drift
from fedgrass.protocol.gain import ADMITTED
from fedgrass.protocol.items import Table
from fedgrass.protocol.records import ALIVE_INTERVALS, MODEL_SUFFIX

State = Literal["alive", "able", "unable", "silent"]
STATES: tuple[State, ...] = get_args(State)

_LEAST_SECONDS = 3.0
_SHARE = 20  # at most a twentieth of the time goes into reading


class DeviceSummary(NamedTuple):
    """A device's summary; ``received_at`` is in epoch milliseconds, 0 if no heartbeat ever came.

    ``own`` are the figures of the fleet's model and of its own ones, where it told any of its own.
    """

    thing: str
    received_at: int
    interval_seconds: float
    able: bool
    version: str
    own: Mapping[str, float] | None = None
    drift: Drift | None = None

    def alive(self, now_ms: float) -> bool:
        """Whether its last heartbeat is younger than three of its intervals."""
        # The same rule as opening a round uses, so the page and the round agree on who is alive.
        return now_ms - self.received_at <= ALIVE_INTERVALS * self.interval_seconds * 1000

    def is_(self, state: State, now_ms: float) -> bool:
        """Whether it is in a state: ``able`` and ``unable`` are of those that are alive."""
        alive = self.alive(now_ms)
        return {"alive": alive, "silent": not alive, "able": alive and self.able, "unable": alive and not self.able}[
            state
        ]


@dataclass
class DeviceSnapshot:
    """What was read, in the order of names, and when (epoch seconds); ``complete`` is False while it is being read."""

    at: float
    devices: list[DeviceSummary] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    @property
    def at_ms(self) -> float:
        """When it was read, in epoch milliseconds: its devices are alive or silent by that time, however old it is by now."""
        return self.at * 1000


class FleetIndex:
    """The last look at a fleet.

    Parameters
    ----------
    devices
        The devices' table, as boto3's ``Table``.
    clock
        Epoch seconds.
    """

    def __init__(self, devices: Callable[[], Table], fleet: str, *, clock: Callable[[], float] = time.time) -> None:
        self._devices = devices
        self._fleet = fleet
        self._clock = clock
        self._lock = threading.Lock()
        self._look: DeviceSnapshot | None = None
        self._reading: threading.Event | None = None
        self._failure: ClientError | BotoCoreError | None = None

    def look(self, patience: float = 0.1) -> DeviceSnapshot:
        """Return the last look, at the latest after ``patience`` seconds; an old one is renewed meanwhile.

        Raises
        ------
        ClientError, BotoCoreError
            If nothing could be read yet.
        """
        with self._lock:
            look = self._look
            old = (
                look is None
                or not look.complete
                or self._clock() - look.at > max(_LEAST_SECONDS, _SHARE * look.seconds)
            )
            # One reader at a time, whoever asks: visitors must not multiply the table's cost.
            if old and self._reading is None:
                self._reading = threading.Event()
                threading.Thread(target=self._read, args=(self._reading,), name="fleet index", daemon=True).start()
            reading = self._reading
        # Outside the lock: waiting inside would stop the reader from finishing.
        if old and reading is not None:
            reading.wait(patience)
        with self._lock:
            if self._failure is not None:
                # Told once: the next look tries again.
                failure, self._failure = self._failure, None
                raise failure
            return self._look or DeviceSnapshot(self._clock())

    def _read(self, done: threading.Event) -> None:
        began = self._clock()
        look = DeviceSnapshot(began)
        with self._lock:
            if self._look is None:
                self._look = look  # as far as it goes: names come in order, so its beginning is right
        try:
            look.devices.extend(self._briefs())
            look.complete = True
            look.seconds = self._clock() - began
            with self._lock:
                self._look = look
        except (ClientError, BotoCoreError) as error:
            with self._lock:
                self._failure = error
                # A first look that failed half way would pass for a small fleet.
                if self._look is look:
                    self._look = None
        finally:
            with self._lock:
                self._reading = None
            done.set()

    def _briefs(self) -> Iterator[DeviceSummary]:
        latest: dict[str, Any] = {}
        for item in self._items():
            thing = str(item["thing"]).removesuffix(MODEL_SUFFIX)
            # A device's two items are neighbours: '#' sorts before everything else that a name can hold.
            if latest and latest["thing"] != thing:
                yield _summary(latest)
                latest = {}
            latest = {**item, **latest, "thing": thing}
        if latest:
            yield _summary(latest)

    def _items(self) -> Iterator[dict[str, Any]]:
        arguments: dict[str, Any] = {
            "KeyConditionExpression": "fleet = :fleet",
            "ExpressionAttributeValues": {":fleet": self._fleet},
            # DynamoDB charges for whole items, but less travels and is parsed.
            "ProjectionExpression": "thing, received_at, interval_seconds, able, model_version, active_version, #metrics, "
            "expires, drift",
            # A word of DynamoDB's own.
            "ExpressionAttributeNames": {"#metrics": "metrics"},
        }
        table = self._devices()
        now = self._clock()
        while True:
            page = table.query(**arguments)
            # DynamoDB removes expired items within days, not at once.
            yield from (item for item in page["Items"] if item.get("expires", now) >= now)
            if "LastEvaluatedKey" not in page:
                return
            arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _summary(item: Mapping[str, Any]) -> DeviceSummary:
    heard = "interval_seconds" in item
    return DeviceSummary(
        thing=item["thing"],
        received_at=int(item["received_at"]) if heard else 0,
        interval_seconds=float(item["interval_seconds"]) if heard else 0.0,
        able=bool(item.get("able", True)),
        version=str(item.get("model_version") or item.get("active_version") or ""),
        own=_own(item.get("metrics") or {}),
        drift=_drift(item.get("drift")),
    )


def _drift(told: object) -> Drift | None:
    """Read what a device says of its drift; as of a heartbeat that cannot be read, nothing is known of what makes no sense."""
    try:
        return None if told is None else Drift.model_validate(told)
    except ValidationError:
        return None


def _own(metrics: Mapping[str, Any]) -> dict[str, float] | None:
    """Return figures of a model's notice if some are of the device's own model: most devices of most fleets have none."""
    if not any(name.startswith(("tuned_", "ditto_")) for name in metrics):
        return None
    return {name: float(metrics[name]) for name in ADMITTED if name in metrics}
