"""A device's metrics report to AWS IoT Device Defender.

https://docs.aws.amazon.com/iot-device-defender/latest/devguide/detect-device-side-metrics.html. What Defender does not define
itself is sent as custom metrics; their names exist once per account and region, so they carry the fleet's name.
"""

from __future__ import annotations

import json
import time

import psutil

from fedgrass.edge.system import Reading
from fedgrass.protocol.messages import Tally


def report(fleet: str, reading: Reading, tally: Tally, *, now: float | None = None) -> bytes:
    """Return the report as JSON.

    Parameters
    ----------
    now
        Epoch seconds; a report's number must be greater than that of the one before.
    """
    # No list of connections: that names the device's peers, and needs a right that the component's user may lack.
    network = psutil.net_io_counters()
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
        "header": {"report_id": int((time.time() if now is None else now) * 1000), "version": "1.0"},
        "metrics": {
            "network_stats": {
                "bytes_in": network.bytes_recv,
                "bytes_out": network.bytes_sent,
                "packets_in": network.packets_recv,
                "packets_out": network.packets_sent,
            }
        },
        "custom_metrics": {f"{fleet}_{name}": [{"number": value}] for name, value in custom.items()},
    }
    return json.dumps(document).encode()
