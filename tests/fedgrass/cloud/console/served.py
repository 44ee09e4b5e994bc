"""The console of a made-up fleet on a port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from flask import Flask
from werkzeug.serving import make_server

from fedgrass.cloud.console.app import create_app
from fedgrass.cloud.console.security import Access
from fedgrass.protocol.fleet_state import DriftRecord
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import save_settings
from tests.fedgrass.cloud.console.conftest import NOW, Fleet, fresh_fleet

PAGES = {
    "fleet": "/",
    "device": "/devices/press-00004",
    "rounds": "/rounds/",
    "round": "/rounds/40",
    "runs": "/runs/",
    "run": "/runs/1",
    "start a run": "/runs/new",
    "start": "/rounds/new",
    "models": "/models/",
    "settings": "/settings/",
}


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application, with a thread for each request; gives its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="console")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def console_of_a_busy_fleet() -> Iterator[tuple[str, Fleet]]:
    """Serve a fleet of 60 devices after 40 rounds, one of them held and waiting, and the next one open."""
    with fresh_fleet() as fleet:
        sample = fleet.fill(devices=60, rounds=40, run=40, profile=39)
        held = sample.record(41).model_copy(
            update={
                "outcome": "held",
                "reason": "accuracy 0.9312 after 0.9664, tolerance 0.02: the base stays",
                "accuracy": 0.9312,
                "loss": 0.2411,
                "active": 0,
            }
        )
        fleet.account.rounds_table.put_item(Item=held.to_item())
        going_on = {
            "phase": "collecting",
            "outcome": None,
            "reason": "",
            "uploaded": 37,
            "declined": 3,
            "bytes_uploaded": 1_480_000,
            "opened_at": NOW - timedelta(minutes=9),
            "deadline": NOW + timedelta(minutes=51),
            "accuracy": None,
            "loss": None,
            "participants": None,
            "quarantined": None,
            "collected_at": None,
            "aggregated_at": None,
            "closed_at": None,
            "active": 0,
            "base": held.base,
        }
        fleet.open(sample.record(42).model_copy(update=going_on))
        settings = FleetSettings().overridden(
            {"fit": {"epochs": 3}, "min_devices": 20, "min_updates": 20, "drift": {"action": "round"}}
        )
        save_settings(fleet.account.rounds_table, "mill", settings)
        begun = int((NOW - timedelta(hours=1)).timestamp() * 1000)
        seen = DriftRecord(fleet="mill", looked_at=begun, alive=57, drifted=9, number=1, begun_at=begun, armed=False)
        fleet.account.rounds_table.put_item(Item=seen.to_item())
        started = {"stateMachineArn": fleet.account.stack.state_machine_arn, "name": seen.execution_name("evaluate")}
        fleet.account.step_functions.start_execution(**started)
        app = create_app(fleet.account, Access(), clock=NOW.timestamp)
        app.extensions["context"].index.look(60)
        with served(app) as address:
            yield address, fleet
