"""A local fleet for Flower's example apps: core devices whose own environment has none of the apps' packages.

These are in folders of the machine, which the devices' setting ``packages`` names, as a maker's image has them
(``docs/how-to/ship-a-builder.md``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from fedgrass.checkout import checkout
from fedgrass.local.demo.wheels import fill
from fedgrass.local.fleet import LocalFleet
from fedgrass.polling import poll
from fedgrass.protocol import tables
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import HEARTBEAT, RUNTIME, SUITE
from fedgrass.protocol.settings import FleetSettings

NAME = "apps"
_COMMAND = (sys.executable, "-c", "from fedgrass.cli import app; app()")
_FIRST_SECONDS = 600
_ERROR = re.compile(r"[A-Z]\w*Error: |[a-z_]+: |AWS ")
"""How the line begins in which a command tells its error."""


class AppFleet:
    """Devices that run one app after the other.

    Parameters
    ----------
    folder
        Of the account and the devices.
    packages
        Folders of packages, for devices and ServerApps.
    devices
        How many; each gets its ``partition-id``.
    """

    def __init__(self, folder: Path, packages: list[str], devices: int) -> None:
        self._fleet = LocalFleet(folder, fleet=NAME, device_environment=fill(checkout() / ".fedgrass/wheels"))
        self._packages = packages
        self._things = [f"device-{number}" for number in range(devices)]

    def __enter__(self) -> AppFleet:
        try:
            self._start()
        except BaseException:
            self._fleet.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fleet.stop()

    def run(self, app: Path, given: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run an app by ``fedgrass flower run --fleet``; returns what that tells, or ``error``."""
        self._fleet.check_devices()
        options = [word for name, value in given.items() for word in ("--run-config", f"{name}={json.dumps(value)}")]
        words = ["flower", "run", str(app.resolve()), "--fleet", NAME, "--replace-model", "--anew", "--json", *options]
        try:
            done = self._command(*words, seconds=seconds)
        except subprocess.TimeoutExpired as error:
            self._command("round", "cancel", "--fleet", NAME, seconds=seconds)
            said = error.stderr.decode(errors="replace").strip().splitlines() if error.stderr else []
            last = said[-1] if said else ""
            return {"error": f"not done after {seconds:g} s; its last line: {last}", "said": "\n".join(said)[-3000:]}
        if done.returncode != 0:
            self._command("round", "cancel", "--fleet", NAME, seconds=seconds)
            return {"error": _told(done.stderr), "said": done.stderr[-3000:]}
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {**found, "said": done.stderr[-3000:]}

    def _command(self, *words: str, seconds: float) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self._fleet.aws.environment(), "FLWR_TELEMETRY_ENABLED": "0"}
        folder = self._fleet.folder / "server"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [*_COMMAND, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _start(self) -> None:
        fleet = self._fleet
        fleet.start_account()
        fleet.publish_components()
        # Whatever an app reports about made-up data is no reason to hold its model.
        undecided = {"tolerance": 1, "loss_tolerance": 1e9, "below_best": 1}
        settings = FleetSettings().overridden(
            {"gate": undecided, "min_devices": 1, "min_updates": 1, "rollout": {"wait_seconds": 120}}
        )
        tables.save_settings(fleet.table(fleet.outputs.rounds_table), NAME, settings)
        for thing in self._things:
            fleet.start_device(thing)
        self._deploy_suite()
        for number, thing in enumerate(self._things):
            self._deploy_partition(thing, number)

    def _deploy_suite(self) -> None:
        shared = {"fleet": NAME, "engine": "flower", "data": {"loader": "own"}, "packages": self._packages}
        self._fleet.aws.client("greengrassv2").create_deployment(
            targetArn=self._fleet.outputs.thing_group_arn,
            components={
                SUITE: {"componentVersion": "1.0.0"},
                RUNTIME: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps(shared)}},
                HEARTBEAT: {
                    "componentVersion": "1.0.0",
                    "configurationUpdate": {"merge": json.dumps({"intervalSeconds": "2"})},
                },
                **self._fleet.nucleus_components(),
            },
        )
        self._await(lambda: len(self._beating()) == len(self._things), "heartbeats of all devices")

    def _deploy_partition(self, thing: str, number: int) -> None:
        """Tell one device which partition is its own, by a deployment to it alone."""
        arn = self._fleet.aws.client("iot").describe_thing(thingName=thing)["thingArn"]
        node = {"nodeConfig": {"partition-id": number, "num-partitions": len(self._things), "dataset-path": "own"}}
        greengrass = self._fleet.aws.client("greengrassv2")
        made = greengrass.create_deployment(
            targetArn=arn,
            components={RUNTIME: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps(node)}}},
        )

        def done() -> bool:
            found = greengrass.list_effective_deployments(coreDeviceThingName=thing)["effectiveDeployments"]
            states = {one["deploymentId"]: one["coreDeviceExecutionStatus"] for one in found}
            return states.get(made["deploymentId"]) == "SUCCEEDED"

        self._await(done, f"the partition of {thing}")

    def _beating(self) -> list[str]:
        table = self._fleet.table(self._fleet.outputs.devices_table)
        return [member.thing for member in fleet_members(table, NAME) if member.heartbeat is not None]

    def _await(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _FIRST_SECONDS
        if not poll(done, bool, until=lambda: end, pause=0.5):
            raise SystemExit(f"flower_fleet: no {what} after {_FIRST_SECONDS} s; logs are in {self._fleet.folder}")


def _told(text: str) -> str:
    """Return what a command said in the end, without what it says of every app."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    first = next((place for place in reversed(range(len(lines))) if _ERROR.match(lines[place])), len(lines) - 1)
    return " ".join(lines[max(0, first) :]) or "it said nothing"
