"""Rounds, one after the other, for as long as a campaign lasts; and what an operator's tables say of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedgrass.local.demo.run import Demo
from fedgrass.protocol import tables
from fedgrass.protocol.records import RoundRecord
from tests.fixtures.waiting import eventually

UNDER_FAULTS = {
    "min_devices": 1,
    "min_updates": 1,
    "deadline_seconds": 25,
    "fit": {"epochs": 60, "learning_rate": 0.2},
    "rollout": {"wait_seconds": 15},
    "gate": {"tolerance": 0.5},
}


class Rounds:
    """Runs rounds on a demo's fleet."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.ended = 0
        self.hung: list[str] = []
        self._client = demo.fleet.aws.client("stepfunctions")
        self._stopping = threading.Event()

    def run(self, **overrides: Any) -> str:
        """Run one round to its end; returns the execution's status."""
        arn = self._client.start_execution(
            stateMachineArn=self.demo.fleet.outputs.state_machine_arn, input=json.dumps({"rounds": 1, **overrides})
        )["executionArn"]

        def status() -> str | None:
            found = str(self._client.describe_execution(executionArn=arn)["status"])
            return None if found == "RUNNING" else found

        try:
            found = eventually(status, every=0.1) or ""
        except AssertionError:
            self.hung.append(arn)
            found = "HUNG"
        self.ended += 1
        return found

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Run rounds meanwhile; the last one ends with the block."""

        def loop() -> None:
            while not self._stopping.is_set():
                self._stopping.wait(0.2 if self.run(**UNDER_FAULTS) == "SUCCEEDED" else 2.0)

        thread = threading.Thread(target=loop, name="rounds")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    @property
    def open_round(self) -> int | None:
        found = tables.load_state(self.demo.rounds_table, self.demo.fleet.fleet).open
        return found.round if found else None

    def records(self) -> list[RoundRecord]:
        return tables.recent_rounds(self.demo.rounds_table, self.demo.fleet.fleet, 10_000)
