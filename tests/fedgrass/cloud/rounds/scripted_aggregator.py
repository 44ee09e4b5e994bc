"""Stands in for the aggregator's container: does what the round's ``strategy.options.script`` says, and nothing more."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

import boto3

from fedgrass.protocol.names import parse_update_key, report_key, update_prefix
from fedgrass.protocol.report import Evaluation, ModelEntry, RoundReport, UpdateEntry
from fedgrass.protocol.tables import load_round


def main() -> int:
    fleet, number = os.environ["FEDGRASS_FLEET"], int(os.environ["FEDGRASS_ROUND"])
    bucket = os.environ["FEDGRASS_BUCKET"]
    session = boto3.Session()
    record = load_round(session.resource("dynamodb").Table(os.environ["FEDGRASS_ROUNDS_TABLE"]), fleet, number)
    script = record.settings.strategy.options.get("script", "released")
    if script == "fail":
        message = Path(os.environ["FEDGRASS_ML_ROOT"]) / "output/message"
        message.parent.mkdir(parents=True, exist_ok=True)
        message.write_text("the evaluation set is not readable")
        return 1
    if script == "hang":
        signal.pause()
    if script == "much_memory":
        job = json.loads((Path(os.environ["FEDGRASS_ML_ROOT"]) / "config/processingjobconfig.json").read_text())
        if job["ProcessingResources"]["ClusterConfig"]["InstanceType"] == "ml.m5.large":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does
        script = "released"
    if script == "no_report":
        return 0
    s3 = session.client("s3")
    found = s3.list_objects_v2(Bucket=bucket, Prefix=update_prefix(fleet, number)).get("Contents", [])
    now = datetime.now(timezone.utc)
    base = record.base
    report = RoundReport(
        fleet=fleet,
        round=number,
        outcome=script,
        strategy="scripted",
        started_at=now,
        finished_at=now,
        base=ModelEntry(version=base.version, parameters_sha256=base.parameters_sha256, graph_sha256=base.graph_sha256),
        model=ModelEntry(version=record.version, parameters_sha256=f"{number:064x}", graph_sha256=base.graph_sha256),
        updates=tuple(
            UpdateEntry(
                thing=parse_update_key(entry["Key"]).thing,
                key=entry["Key"],
                etag=entry["ETag"],
                bytes=entry["Size"],
                num_examples=10,
                weight=1.0,
                norm=1.0,
            )
            for entry in found
        ),
        evaluation=Evaluation(loss=0.5, accuracy=0.9, examples=100),
    )
    s3.put_object(Bucket=bucket, Key=report_key(fleet, number), Body=report.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
