"""The context that all pages share."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fedgrass.account import Account
from fedgrass.cloud.aggregator.manual_release import fleet_clients
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.console.index import FleetIndex
from fedgrass.cloud.console.versions import Versions
from fedgrass.cloud.ending.reports import find_report
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport

_KEPT_REPORTS = 4


@dataclass(frozen=True)
class Context:
    """A fleet, seen by the console; its parts are made before the first request, as threads share them."""

    account: Account
    clock: Callable[[], float] = time.time
    _reports: OrderedDict[int, RoundReport] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def index(self) -> FleetIndex:
        """A summary of every device."""
        return FleetIndex(lambda: self.account.devices_table, self.account.fleet, clock=self.clock)

    @cached_property
    def clients(self) -> FleetClients:
        """The clients with which models are published."""
        return fleet_clients(self.account)

    @cached_property
    def versions(self) -> Versions:
        """The published models."""
        return Versions(self.account.s3, self.account.stack.bucket, self.account.fleet)

    @property
    def now_ms(self) -> float:
        """Epoch milliseconds."""
        return self.clock() * 1000

    def report(self, record: RoundRecord) -> RoundReport | None:
        """Return a round's report, which never changes once it is there; it can be large, so the last few are kept."""
        # Not held while S3 is asked: two threads may fetch one report, which is the same to both.
        with self._lock:
            found = self._reports.get(record.round)
        if found is not None:
            return found
        found = find_report(self.account.s3, self.account.stack.bucket, record)
        if found is not None:
            with self._lock:
                self._reports[record.round] = found
                while len(self._reports) > _KEPT_REPORTS:
                    self._reports.popitem(last=False)
        return found

    def prepare(self) -> None:
        """Make everything that is made once, and begin to read the fleet; raises what AWS has against it."""
        account = self.account
        # Cached properties are made at their first use, which is here, before threads share them.
        _ = account.rounds_table, account.devices_table, account.step_functions, self.clients, self.versions
        self.index.look()
