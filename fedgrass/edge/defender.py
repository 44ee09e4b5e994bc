"""A device's metrics report to AWS IoT Device Defender.

https://docs.aws.amazon.com/iot-device-defender/latest/devguide/detect-device-side-metrics.html. What Defender does not define
itself is sent as custom metrics; their names exist once per account and region, so they carry the fleet's name.

Its part "detect", for which the reports are, takes no new customers since 2026-08-31: by default nothing is reported.
"""

from __future__ import annotations

import json
import time

import psutil

from fedgrass.edge.system import Reading
from fedgrass.protocol.device_messages import Tally


class Network:
    """What went over the device's network since it was last asked: Defender adds up what reports say."""

    def __init__(self) -> None:
        self._before = _counters()

    def since_last(self) -> dict[str, int]:
        """Return bytes and packets in and out; counters that started over count from 0."""
        before, now = self._before, _counters()
        self._before = now
        # A counter below the one before means a reboot or an interface that came back.
        return {name: value - before[name] if value >= before[name] else value for name, value in now.items()}


def _counters() -> dict[str, int]:
    # No list of connections: that names the device's peers, and needs a right that the component's user may lack.
    found = psutil.net_io_counters()
    return {
        "bytes_in": found.bytes_recv,
        "bytes_out": found.bytes_sent,
        "packets_in": found.packets_recv,
        "packets_out": found.packets_sent,
    }


def report(
    fleet: str, reading: Reading, tally: Tally, *, network: dict[str, int] | None = None, now: float | None = None
) -> bytes:
    """Return the report as JSON.

    Parameters
    ----------
    network
        Of `Network`; none is reported if None.
    now
        Epoch seconds; a report's number must be greater than that of the one before.
    """
    custom = {
        "cpu_percent": reading.cpu_percent,
        "memory_percent": reading.memory_percent,
        "training_seconds": tally.training_seconds,
        "rounds_taken": tally.taken,
        "rounds_declined": tally.declined,
        "rounds_failed": tally.failed,
        "rounds_failed_in_a_row": tally.failed_in_a_row,
    }
    document = {
        # Milliseconds, so that two reports within a second still have growing numbers.
        "header": {"report_id": int((time.time() if now is None else now) * 1000), "version": "1.0"},
        "metrics": {} if network is None else {"network_stats": network},
        "custom_metrics": {f"fedgrass:{fleet}:{name}": [{"number": value}] for name, value in custom.items()},
    }
    return json.dumps(document).encode()
