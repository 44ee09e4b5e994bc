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
    accuracy: float | None
    loss: float | None
    participants: int
    quarantined: int
    seconds_train: float | None
    seconds_aggregate: float | None
    seconds_release_to_active: float | None
    seconds_last_upload_to_active: float | None
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
    final_accuracy: float | None
    initial_accuracy: float | None
    best_single_device_accuracy: float
    single_device_accuracy: dict[str, float]
    centralised_accuracy: float
    examples: dict[str, int]
    devices_active_on_final: int
    setup_seconds: float
    start_seconds: float
    total_seconds: float


def summarise_round(record: RoundRecord, report: RoundReport | None, parts: list[Participation]) -> RoundSummary:
    """Join what the tables and the aggregator's report say of a closed round.

    A round that released nothing leaves the fleet on its base: that is then the version, and the accuracy is the
    base's.
    Without enough updates there is no report at all.

    Parameters
    ----------
    record
        The round.
    report
        The aggregator's; None if there were too few updates.
    parts
        What each device did.

    Returns
    -------
    RoundSummary
        One round of the demo's report.
    """
    released = report is not None and report.outcome == "released" and record.outcome != "refused"
    evaluation = report and (report.evaluation if released else report.evaluation_base)
    model = report and (report.model if released else report.base)
    # Milliseconds in the table, seconds here.
    uploaded = record.last_upload_at and record.last_upload_at / 1000
    admitted = record.last_model_at and record.last_model_at / 1000 if released else None
    made = report.finished_at.timestamp() if report else None
    used = [
        Contribution(thing=entry.thing, key=entry.key, num_examples=entry.num_examples, used=True)
        for entry in (report.updates if report else ())
    ]
    refused = [
        Contribution(thing=entry.thing, key=entry.key, num_examples=0, used=False, reason=entry.reason)
        for entry in (report.quarantined if report else ())
    ]
    return RoundSummary(
        round=record.round,
        outcome=record.outcome or record.phase,
        base_version=record.base.version,
        version=model.version if model else record.base.version,
        accuracy=evaluation.accuracy if evaluation else None,
        loss=evaluation.loss if evaluation else None,
        participants=len(used),
        quarantined=len(refused),
        seconds_train=_between(record.opened_at.timestamp(), uploaded),
        seconds_aggregate=_between(report.started_at.timestamp(), made) if report else None,
        seconds_release_to_active=_between(made, admitted),
        seconds_last_upload_to_active=_between(uploaded, admitted),
        bytes_uploaded=record.bytes_uploaded,
        parameters_sha256=model.parameters_sha256 if model else record.base.parameters_sha256,
        component_arn=report.release.component_arn if report and report.release else "",
        deployment_id=report.release.deployment_id if report and report.release else "",
        updates=used + refused,
        devices_active=sorted(part.thing for part in parts if part.model_outcome == "active"),
        inference_accuracy=report.inference_accuracy if report else {},
    )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 3)
