"""One fleet of two local core devices for these tests, one of either nucleus: each test runs rounds of its own on it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedgrass.local.demo.run import Demo, DemoOptions
from fedgrass.protocol import tables
from fedgrass.protocol.members import FleetMember, fleet_members
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import Participation, RoundRecord
from tests.faults.fleet import FaultyFleet
from tests.fixtures.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
# What a model's accuracy comes to differs between processors, and how long a step takes between machines: here neither ends
# a round or refuses a model. The tests that are about the gate, the admission or a deadline say so themselves.
UNDECIDED = {
    "gate": {"tolerance": 1, "loss_tolerance": 1e9, "below_best": 1},
    "deadline_seconds": int(PATIENCE),
    "rollout": {"wait_seconds": int(PATIENCE)},
}
_FEDGRASS = (sys.executable, "-c", "from fedgrass.cli import app; app()")


class Operator:
    """Drives a running fleet the way the console does."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.fleet = demo.fleet
        self._step_functions = demo.fleet.aws.client("stepfunctions")

    def ready(self) -> None:
        """Wait until every device could train: after a release a component starts over, and says so when it is up."""

        def able() -> set[str]:
            members = fleet_members(self.demo.devices_table, self.fleet.fleet)
            return {member.thing for member in members if member.heartbeat is not None and member.heartbeat.able}

        eventually(lambda: able() >= self.fleet.devices.keys(), "every device able to train")

    def start(self, **overrides: Any) -> str:
        self.ready()
        started = self._step_functions.start_execution(
            stateMachineArn=self.fleet.outputs.state_machine_arn, input=json.dumps(overrides)
        )
        return str(started["executionArn"])

    def wait(self, execution: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            described: dict[str, Any] = self._step_functions.describe_execution(executionArn=execution)
            return None if described["status"] == "RUNNING" else described

        return eventually(ended, timeout=3 * PATIENCE) or {}

    def run_round(self, **overrides: Any) -> RoundRecord:
        """Run one round to its end and return its record."""
        number = self.next_round
        described = self.wait(self.start(**overrides))
        assert described["status"] == "SUCCEEDED", f"{described.get('error')}: {described.get('cause')}"
        return tables.load_round(self.demo.rounds_table, self.fleet.fleet, number)

    @property
    def disturbed(self) -> FaultyFleet:
        """The same fleet, whose processes and links can be disturbed."""
        assert isinstance(self.fleet, FaultyFleet)
        return self.fleet

    def member(self, thing: str) -> FleetMember:
        """What the cloud knows of a device."""
        members = fleet_members(self.demo.devices_table, self.fleet.fleet)
        return next(member for member in members if member.thing == thing)

    def parts(self, record: RoundRecord) -> list[Participation]:
        """Every device's part in a round."""
        return list(participations(self.demo.rounds_table, self.fleet.fleet, record.round))

    @contextmanager
    def known(self, *things: str) -> Iterator[None]:
        """Make things of the fleet that are no devices here: what somebody has taken over is known all the same."""
        for thing in things:
            self.demo.devices_table.put_item(Item={"fleet": self.fleet.fleet, "thing": thing, "received_at": 1})
        try:
            yield
        finally:
            for thing in things:
                self.demo.devices_table.delete_item(Key={"fleet": self.fleet.fleet, "thing": thing})

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[None]:
        """Change the fleet's settings for a while."""
        table, fleet = self.demo.rounds_table, self.fleet.fleet
        before = tables.load_settings(table, fleet)
        tables.save_settings(table, fleet, before.overridden(changes))
        try:
            yield
        finally:
            tables.save_settings(table, fleet, before)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``fedgrass``, as a person would."""
        return subprocess.run(
            [*_FEDGRASS, *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    @contextmanager
    def console(self) -> Iterator[str]:
        """Run ``fedgrass console`` and give its address."""
        argv = [*_FEDGRASS, "console", "--port", "0"]
        with subprocess.Popen(argv, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                said = process.stdout.readline() if process.stdout else ""
                address = re.search(r"http://\S+", said)
                assert address, f"the console said {said!r} and ended with code {process.poll()}"
                yield address[0]
            finally:
                process.terminate()

    @property
    def _environment(self) -> dict[str, str]:
        own = {"FEDGRASS_FLEET": self.fleet.fleet, "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **self.fleet.aws.environment(), **own}

    @property
    def next_round(self) -> int:
        return tables.load_state(self.demo.rounds_table, self.fleet.fleet).last + 1

    @property
    def model(self) -> str:
        current = tables.load_state(self.demo.rounds_table, self.fleet.fleet).model
        assert current is not None
        return current.version

    def active_versions(self) -> set[str]:
        """What each device's application would load now."""
        return {
            json.loads((device.store / "active" / "model.json").read_text())["version"]
            for device in self.fleet.devices.values()
        }


@pytest.fixture(scope="package")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("fleet")
    console = Console(file=io.StringIO())
    options = DemoOptions(devices=2, rounds=1, seed=1)
    with Demo(options, folder, cache=ROOT / ".fedgrass/wheels", console=console, make_fleet=FaultyFleet) as demo:
        demo.settings = demo.settings.overridden(UNDECIDED)
        demo.start()
        yield Operator(demo)


@pytest.fixture(autouse=True)
def ready(request: pytest.FixtureRequest) -> None:
    """Begin each test of the fleet with devices that could train."""
    if "operator" in request.fixturenames:
        request.getfixturevalue("operator").ready()
