"""The console of a made-up fleet on a port of this machine; ``python -m tests.cloud.console.served FOLDER`` photographs it.

The pictures in docs/console/ are from there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from flask import Flask
from werkzeug.serving import make_server

from cloud.console.access import Access
from cloud.console.app import create_app
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import save_settings
from tests.cloud.console.conftest import NOW, Fleet, fresh_fleet
from tests.fixtures.browser import chromium

PAGES = {
    "fleet": "/",
    "device": "/devices/press-00004",
    "rounds": "/rounds/",
    "round": "/rounds/40",
    "start": "/rounds/new",
    "models": "/models/",
    "settings": "/settings/",
}
PHOTOGRAPHED = {
    "fleet": ("fleet", "light", 1280, 800),
    "rounds": ("rounds", "light", 1280, 900),
    "rounds-dark": ("rounds", "dark", 1280, 900),
    "round": ("round", "light", 1280, 900),
    "models": ("models", "light", 1280, 800),
    "settings": ("settings", "light", 1280, 800),
    "phone": ("rounds", "light", 390, 844),
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
        sample = fleet.fill(devices=60, rounds=40)
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
        settings = FleetSettings().overridden({"fit": {"epochs": 3}, "min_devices": 20, "min_updates": 20})
        save_settings(fleet.account.rounds_table, "mill", settings)
        app = create_app(fleet.account, Access(), clock=NOW.timestamp)
        app.extensions["desk"].index.look(60)
        with served(app) as address:
            yield address, fleet


def main() -> None:
    """Photograph the pages into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with console_of_a_busy_fleet() as (address, _), chromium() as browser:
        for name, (page, scheme, width, height) in PHOTOGRAPHED.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
            )
            shown = context.new_page()
            shown.goto(address + PAGES[page])
            shown.screenshot(path=folder / f"{name}.png")
            context.close()


if __name__ == "__main__":
    main()
