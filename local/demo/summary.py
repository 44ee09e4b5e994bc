"""What a demo run found, as ``report.json`` holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fedgrass.protocol.records import Participation, RoundRecord
from fedgrass.protocol.report import RoundReport


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Contribution(_Part):
    """A line of a version's descent: an update that went into it, or was refused."""

    thing: str
    key: str
    num_examples: int
    used: bool
    reason: str = ""


class RoundSummary(_Part):
    """One round. Seconds are by the cloud's clock.

    ``seconds_train`` runs from the opening to the last upload, ``seconds_aggregate`` is the Processing job's, from its
    start to its end, which is when the deployment exists; ``seconds_release_to_active`` from there to the last device's word
    on the new model; ``seconds_last_upload_to_active`` spans both and what lies between.
    """

    round: int
    outcome: str
    base_version: str
    version: str
    accuracy: float
    loss: float | None
    participants: int
    quarantined: int
    seconds_train: float
    seconds_aggregate: float
    seconds_release_to_active: float
    seconds_last_upload_to_active: float
    bytes_uploaded: int
    parameters_sha256: str
    component_arn: str
    deployment_id: str
    updates: list[Contribution]
    devices_active: list[str]
    inference_accuracy: dict[str, float] = {}


class DemoReport(_Part):
    """The whole run."""

    devices: int
    seed: int
    rounds: list[RoundSummary]
    final_version: str
    final_accuracy: float
    initial_accuracy: float | None
    best_single_device_accuracy: float
    single_device_accuracy: dict[str, float]
    centralised_accuracy: float
    examples: dict[str, int]
    devices_active_on_final: int
    setup_seconds: float
    start_seconds: float
    total_seconds: float


def summarise_round(record: RoundRecord, report: RoundReport, parts: list[Participation]) -> RoundSummary:
    """Join what the tables and the aggregator's report say of a closed round."""
    uploaded = (record.last_upload_at or 0) / 1000
    admitted = (record.last_model_at or 0) / 1000
    used = [
        Contribution(thing=entry.thing, key=entry.key, num_examples=entry.num_examples, used=True)
        for entry in report.updates
    ]
    refused = [
        Contribution(thing=entry.thing, key=entry.key, num_examples=0, used=False, reason=entry.reason)
        for entry in report.quarantined
    ]
    accuracy = report.evaluation.accuracy if report.evaluation else None
    return RoundSummary(
        round=record.round,
        outcome=report.outcome,
        base_version=report.base.version,
        version=report.model.version if report.model else report.base.version,
        accuracy=accuracy or 0.0,
        loss=report.evaluation.loss if report.evaluation else None,
        participants=len(used),
        quarantined=len(refused),
        seconds_train=round(uploaded - record.opened_at.timestamp(), 3),
        seconds_aggregate=round((report.finished_at - report.started_at).total_seconds(), 3),
        seconds_release_to_active=round(admitted - report.finished_at.timestamp(), 3),
        seconds_last_upload_to_active=round(admitted - uploaded, 3),
        bytes_uploaded=record.bytes_uploaded,
        parameters_sha256=report.model.parameters_sha256 if report.model else report.base.parameters_sha256,
        component_arn=report.release.component_arn if report.release else "",
        deployment_id=report.release.deployment_id if report.release else "",
        updates=used + refused,
        devices_active=sorted(part.thing for part in parts if part.model_outcome == "active"),
        inference_accuracy=report.inference_accuracy,
    )
