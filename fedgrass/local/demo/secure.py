"""Secure aggregation in the demo: three of the devices are helpers, and what the cloud held is looked at afterwards."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from typing import Any

from fedgrass import tensors
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import TRAINER, UPDATE_FILE
from fedgrass.protocol.settings import FleetSettings

HELPERS: dict[str, dict[str, Any]] = {
    TRAINER: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps({"helper": "true"})}}
}
"""What the deployment says more: every device may be a helper; the settings pin three."""

_COUNT = 3
# Bytes: the most that is read as an update's header.
_MAX_HEADER = 1 << 20


def pinned(settings: FleetSettings, devices: Any, fleet: str) -> FleetSettings:
    """Return the settings with the keys of three helpers, as their heartbeats tell them.

    Parameters
    ----------
    settings
        The fleet's.
    devices
        The devices' table.
    fleet
        The fleet's name.
    """
    keys = {one.thing: one.heartbeat.trainer.helper_key for one in fleet_members(devices, fleet) if one.heartbeat}
    helpers = [{"name": thing, "key": key} for thing, key in sorted(keys.items())[:_COUNT]]
    return settings.overridden({"secure": {"helpers": helpers, "helper_seconds": 300}})


@dataclass(frozen=True)
class Held:
    """What lay in the bucket. ``compressed`` is the share of the masked values' bytes that deflate leaves."""

    masked: int
    plain: int
    compressed: float
    sums: int


def held(s3: Any, bucket: str, fleet: str) -> Held:
    """Look at every update that the bucket holds, in all versions of each object.

    Parameters
    ----------
    s3
        The boto3 client.
    bucket
        The fleet's.
    fleet
        The fleet's name.

    Returns
    -------
    Held
        How many are masked and how many are not, and what compression leaves of the masked ones.
    """
    masked = plain = sums = before = after = 0
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=f"updates/{fleet}/"):
        for entry in page.get("Versions", ()):
            if not entry["Key"].endswith(UPDATE_FILE):
                # What helpers put beside the updates.
                sums += "/sum-" in entry["Key"]
                continue
            content = s3.get_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])["Body"].read()
            header = tensors.read_header(io.BytesIO(content), file_bytes=len(content), max_header_bytes=_MAX_HEADER)
            if header.metadata.get("codec", "").startswith("masked"):
                # Without the header, which is plain text and compresses whatever the values are.
                values = content[header.data_offset :]
                masked, before, after = masked + 1, before + len(values), after + len(zlib.compress(values))
            else:
                plain += 1
    return Held(masked, plain, after / max(1, before), sums)
