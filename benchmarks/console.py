"""``python -m benchmarks.console``: how long the web console's pages take, with a large fleet in the tables.

The tables are those of the local stand-in for AWS, a separate process, which answers far slower than DynamoDB does: of a
page's time, ``aws`` is what passed in calls to it, and ``cpu`` what the console itself computed. Milliseconds of one request
after another, without the browser's part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from fedgrass.account import Account
from fedgrass.cloud.console.app import create_app, prepare
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.security import Access
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.local.aws.client import start
from fedgrass.local.sample import Sample, now
from fedgrass.protocol import tables
from fedgrass.protocol.settings import FleetSettings

_FLEET = "large"


class Stopwatch:
    """Seconds that one thread spends in calls of AWS."""

    def __init__(self, session: Any) -> None:
        self.seconds = 0.0
        self._thread = threading.get_ident()
        self._began = 0.0
        session.events.register("before-call", self._begin)
        session.events.register("after-call", self._end)

    def _begin(self, **_: object) -> None:
        # The index reads in a thread of its own, which no page waits for.
        if threading.get_ident() == self._thread:
            self._began = time.perf_counter()

    def _end(self, **_: object) -> None:
        if threading.get_ident() == self._thread:
            self.seconds += time.perf_counter() - self._began


def main() -> None:
    """Fill the tables, load each page again and again, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=20, help="loads of each page that are measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedgrass-") as folder, start(Path(folder)) as aws:
        os.environ.update(aws.environment())
        account = Account.of(_FLEET)
        deploy(account.session, fleet=_FLEET, dependencies=False)
        began = time.perf_counter()
        # One run of all rounds, which is what a stream is; and devices that compare with a profile.
        profile = max(1, arguments.rounds - 1)
        size = {"devices": arguments.devices, "rounds": arguments.rounds, "run": arguments.rounds}
        sample = Sample(account, **size, now=now(), profile=profile)
        sample.write()
        watched = FleetSettings().overridden({"drift": {"action": "alarm"}})
        tables.save_settings(account.rounds_table, _FLEET, watched)
        filled = time.perf_counter() - began
        account = Account.of(_FLEET)  # a client takes the session's listeners when it is made
        stopwatch = Stopwatch(account.session)
        app = create_app(account, Access())
        context: Context = app.extensions["context"]
        began = time.perf_counter()
        prepare(app)
        client = app.test_client()
        cold = _load(client, "/")
        while not context.index.look(60).complete:
            pass
        read = time.perf_counter() - began
        pages = {
            "fleet": "/",
            "fleet, last page": f"/?page={arguments.devices}",
            "fleet, silent ones": "/?state=silent&name=press",
            "fleet, drifted ones": "/?drift=drifted",
            "device": f"/devices/{sample.things[0]}",
            "rounds": "/rounds/",
            "rounds, last page": f"/rounds/?page={arguments.rounds}",
            "round": f"/rounds/{arguments.rounds}",
            "runs": "/runs/",
            "run": "/runs/1",
            "run, last page": f"/runs/1?page={arguments.rounds}",
            "start a run": "/runs/new",
            "models": "/models/",
            "settings": "/settings/",
            "live panel": "/rounds/live?round=0",
        }
        measured = {name: _measure(client, address, arguments.times, stopwatch) for name, address in pages.items()}
    print(
        json.dumps(
            {
                "devices": arguments.devices,
                "rounds": arguments.rounds,
                "loads": arguments.times,
                "pages_ms": measured,
                "slowest_median_ms": max(entry["median"] for entry in measured.values()),
                "slowest_p95_ms": max(entry["p95"] for entry in measured.values()),
                "first_fleet_page_ms": round(1000 * cold, 1),
                "all_devices_read_seconds": round(read, 1),
                "tables_filled_seconds": round(filled, 1),
            }
        )
    )


def _load(client: FlaskClient, address: str) -> float:
    began = time.perf_counter()
    status = client.get(address).status_code
    if status not in {200, 204, 205}:
        raise SystemExit(f"{address}: status {status}")
    return time.perf_counter() - began


def _measure(client: FlaskClient, address: str, times: int, stopwatch: Stopwatch) -> dict[str, float]:
    first = _load(client, address)
    stopwatch.seconds = 0.0
    spent = time.process_time()
    loads = [_load(client, address) for _ in range(times)]
    spent = time.process_time() - spent
    return {
        "median": round(1000 * statistics.median(loads), 1),
        "p95": round(1000 * statistics.quantiles(loads, n=20)[-1], 1),
        "cpu": round(1000 * spent / times, 1),
        "aws": round(1000 * stopwatch.seconds / times, 1),
        "first": round(1000 * first, 1),
    }


if __name__ == "__main__":
    main()
