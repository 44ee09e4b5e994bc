"""Two devices of one name: a disk or a certificate that was copied, or a name that was given twice.

Every message of theirs is the one thing's for IoT Core and for us, so what is known of it changes back and forth. A
heartbeat's process names itself now and then, and a topic rule keeps an item ``instance#<thing>#<id>`` in the table of rounds.
Processes of one device follow each other; where two ran at one time there are two devices.
"""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import combinations
from typing import TypeAlias

from pydantic import AwareDatetime, Field

from fedgrass.errors import RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.items import Table, items_below
from fedgrass.protocol.message import Count
from fedgrass.protocol.names import FleetName, ThingName
from fedgrass.protocol.records import Record

_PREFIX = "instance#"
_ON_ITS_WAY_SECONDS = 10.0  # a message of the former process may arrive after the next one has begun
# What two readings of one device's clock may be off by, as `sent_at` and `up_seconds` are not taken at the same
# instant.
_CLOCK_SECONDS = 1.0
_MONTH_SECONDS = 30 * 86_400.0

_Span: TypeAlias = tuple[float, float]


class Instance(Record):
    """The latest report of one heartbeat's process, as the topic rule wrote it."""

    fleet: FleetName
    thing: ThingName
    instance: str = Field(min_length=1)
    sent_at: AwareDatetime
    up_seconds: float = Field(ge=0, allow_inf_nan=False)
    received_at: Count = Field(description="Epoch milliseconds, by the cloud's clock")

    def runs_beside(self, other: Instance) -> bool:
        """Whether both ran at one time, by the cloud's clock and by their own.

        By one alone a single device could seem two: messages that waited for a link arrive when the next process has begun,
        and a device whose clock was set back begins before it ended. No message waits for a month: a clock that is wrong by
        more says nothing.
        """
        if _overlap(self._heard, other._heard) <= _ON_ITS_WAY_SECONDS:
            return False
        # How differently the two processes' clocks are off from the cloud's.
        apart = abs((self._heard[1] - self._ran[1]) - (other._heard[1] - other._ran[1]))
        return apart > _MONTH_SECONDS or _overlap(self._ran, other._ran) > _CLOCK_SECONDS

    @property
    def _heard(self) -> _Span:
        """From when to when it ran, in seconds of the cloud's clock."""
        end = self.received_at / 1000
        return end - self.up_seconds, end

    @property
    def _ran(self) -> _Span:
        """The same by its own clock."""
        end = self.sent_at.timestamp()
        return end - self.up_seconds, end


def shared_names(rounds: Table, fleet: str) -> set[str]:
    """Return the names that several devices use."""
    now = time.time()
    things: defaultdict[str, list[Instance]] = defaultdict(list)
    for item in items_below(rounds, "key", fleet, _PREFIX):
        if item.get("expires", now) < now:  # TTL removes an item up to days after it expired
            continue
        try:
            instance = Instance.from_item(item)
        except RecordError as error:
            log_event("instance_item_unreadable", fleet=fleet, reason=str(error))
            continue
        things[instance.thing].append(instance)
    return {
        thing for thing, found in things.items() if any(one.runs_beside(other) for one, other in combinations(found, 2))
    }


def _overlap(one: _Span, other: _Span) -> float:
    return min(one[1], other[1]) - max(one[0], other[0])
