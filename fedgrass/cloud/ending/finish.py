"""Carry out a round's outcome, by whoever comes next: the job that wrote it, a function after it, the next opening.

Each step can run twice, or in two places at once, with one effect; the report is written last, so that one that is there says
that all was done.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.cloud.ending.canaries import restore
from fedgrass.cloud.ending.deployment import SupersededError, deploy_version, deployed_version, job_configuration
from fedgrass.cloud.ending.in_time import recount
from fedgrass.cloud.ending.place import Place
from fedgrass.cloud.ending.registration import archive_key, register
from fedgrass.cloud.ending.reports import find_proposal, find_report, write_first
from fedgrass.errors import RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.at_hand import taken_by
from fedgrass.protocol.fleet_state import STATE_KEY
from fedgrass.protocol.names import report_key, version_order
from fedgrass.protocol.records import RoundRecord, round_key
from fedgrass.protocol.refusals import count_refusals
from fedgrass.protocol.report import ReleaseEntry, RoundReport
from fedgrass.protocol.tables import load_round, load_state
from fedgrass.protocol.writes import change, update_item

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2.type_defs import DeploymentIoTJobConfigurationTypeDef

_ATTEMPTS = 10
# Outcomes that a job writes, and so leaves a proposal for; failed, cancelled and evaluated rounds have none.
_OF_THE_JOB = frozenset(
    {"released", "refused", "advanced", "held", "profiled", "insufficient_updates", "helpers_missing"}
)


def finish(place: Place, record: RoundRecord) -> RoundReport | None:
    """Carry out what the outcome of ``record`` still requires; return the round's report, if its job ended it.

    Raises
    ------
    ReleaseError
        If others keep deploying to the fleet.
    AggregationError
        If what lies where the report should is none of this round.
    """
    # First, and whatever the outcome: devices must not stay on a model that went no further.
    restore_canaries(place, record)
    if record.outcome not in _OF_THE_JOB:
        return None
    # A report that exists is the last thing that was written: all else was done before it.
    report = find_report(place.s3, place.bucket, record)
    if report is None:
        proposal = find_proposal(place.s3, place.bucket, record)
        if proposal is None:
            return None
        # Before the report, which says who was in time.
        recount(place.rounds, place.s3, place.bucket, record)
        # What the devices said of it afterwards is no part of what the job did.
        outcome = "released" if record.outcome == "refused" else record.outcome
        report = proposal.model_copy(update={"outcome": outcome, "reason": record.reason, "release": None})
        if outcome == "released":
            report = report.model_copy(update={"release": _release(place, record, proposal)})
        # Of two that finish at once, the first report stays; both go on with it.
        report = write_first(place.s3, place.bucket, report_key(record.fleet, record.round), record, report)
    _keep_figures(place, record, report)
    return report


def restore_canaries(place: Place, record: RoundRecord) -> None:
    """Give the round's canaries back what the fleet has, unless the model was released."""
    if record.canaries is not None:
        restore(place.greengrass, place.thing_group_arn, place.model_component, record)


def deploy_current(
    place: Place, *, job: DeploymentIoTJobConfigurationTypeDef | None = None, over: str = ""
) -> str | None:
    """Deploy the version that the fleet's state names; then the state is read, and again until both agree.

    Parameters
    ----------
    over
        A newer version that makes way: one that was deployed past the state, and that the devices refuse.

    Returns
    -------
    str or None
        The deployment's id; None if the state names none, or the fleet has no deployment and is not to get one.

    Raises
    ------
    SupersededError
        If a newer version is deployed than the state names, and no person went back.
    ReleaseError
        If others keep deploying to the fleet.
    """
    others = False
    for _ in range(_ATTEMPTS):
        released = load_state(place.rounds, place.fleet).released
        if released is None:
            return None
        made = deploy_version(
            place.greengrass,
            place.thing_group_arn,
            place.model_component,
            released.version,
            create=released.by in {"round", "hand"},
            # What this very loop deployed before makes way, too.
            exact=others or bool(over) or released.by in {"roll_back", "refusal"},
            job=job,
        )
        # Somebody may have released or gone back while this was deploying: what counts is the state, not who is last.
        if load_state(place.rounds, place.fleet).released == released:
            return made
        # Whoever came between may have deployed something newer than the state now names.
        others = True
    raise RecordError(f"fleet {place.fleet!r}: what is to be deployed keeps changing; try again")


def finish_by_hand(place: Place, version: str) -> None:
    """Finish a person's release or roll-back whose process has died; safe to repeat."""
    # Before the question whose model it was: a deployment is owed whatever the state names.
    deploy_current(place)
    released = load_state(place.rounds, place.fleet).released
    _, number, _ = version_order(version)
    # Version x.0.y is no round's: there is no report to register it from.
    if released is None or released.version != version or number == 0:
        return
    record = load_round(place.rounds, place.fleet, number)
    report = find_report(place.s3, place.bucket, record)
    if record.outcome == "released" and record.version == version and report is not None:
        register_released(place, record, report)


def compared(place: Place, record: RoundRecord) -> str:
    """Describe what is wrong with the fleet's deployment after a release; empty if nothing is.

    CreateDeployment replaces everything: one that somebody made from an older deployment undoes a release.
    """
    if record.outcome != "released":
        return ""
    released = load_state(place.rounds, place.fleet).released
    if released is None:
        return ""
    try:
        found = deployed_version(place.greengrass, place.thing_group_arn, place.model_component)
    # Only a comparison: that it cannot be made must not keep the round from closing.
    except (ClientError, BotoCoreError) as error:
        log_event("deployment_not_compared", fleet=place.fleet, round=record.round, reason=str(error))
        return ""
    if found == released.version:
        return ""
    return (
        f"but the latest deployment to the fleet has {found or 'no model'} and not {released.version}: somebody deployed over "
        f"it; `fedgrass model roll-back {released.version}` brings it back"
    )


def _release(place: Place, record: RoundRecord, proposal: RoundReport) -> ReleaseEntry:
    if proposal.release is None:
        raise RecordError(f"proposal of round {record.round}: it is released, and names no component")
    deployment = ""
    try:
        deployment = deploy_current(place, job=job_configuration(record.settings.rollout)) or ""
    except SupersededError as error:
        log_event("release_superseded", fleet=record.fleet, round=record.round, reason=str(error))
    package = register_released(place, record, proposal)
    return proposal.release.model_copy(update={"deployment_id": deployment, "model_package_arn": package})


def register_released(place: Place, record: RoundRecord, report: RoundReport) -> str | None:
    """Register the round's model in the model registry, if the fleet has one and the model's archive exists.

    Parameters
    ----------
    place
        The fleet's services and names.
    record
        The round.
    report
        Its report: the model, its figures, and the number of its participants.

    Returns
    -------
    str or None
        ARN of the model package; None if there is none. A failure is logged: people look there, rounds do not.
    """
    if place.sagemaker is None or report.model is None:
        return None
    try:
        # An entry without its archive would fail whoever deploys it.
        place.s3.head_object(Bucket=place.bucket, Key=archive_key(record.fleet, record.version))
        return register(
            place.sagemaker,
            place.package_group,
            place.image,
            place.bucket,
            record,
            report.model,
            participants=len(report.updates),
            evaluation=report.evaluation,
        )
    except (ClientError, BotoCoreError) as error:
        # A service for people, so its failure is none of the release.
        log_event(
            "model_not_registered", fleet=record.fleet, round=record.round, version=record.version, reason=str(error)
        )
        return None


def _keep_figures(place: Place, record: RoundRecord, report: RoundReport) -> None:
    """Put the report's figures into the record, what is spent of privacy into the state, and refusals with the devices."""
    privacy = report.privacy.model_dump(mode="json") if report.privacy else None
    profile = report.profile.model_dump(mode="json") if report.profile else None
    figures = {
        "participants": len(report.updates),
        "quarantined": len(report.quarantined) + report.quarantined_more,
        "accuracy": report.evaluation.accuracy if report.evaluation else None,
        "loss": report.evaluation.loss if report.evaluation else None,
        "metrics": report.evaluation.metrics if report.evaluation else None,
        "reported": report.reported or None,
        "personal": report.personal.model_dump(mode="json") if report.personal else None,
        "hold": report.hold,
        "model_bytes": report.model_bytes or None,
        "privacy": privacy,
        "profile": profile,
        "took": taken_by(report),
    }
    # Unconditional: the report is written once, so every repetition writes the same figures.
    update_item(place.rounds, Key={"fleet": record.fleet, "key": round_key(record.round)}, **change(put=figures))
    if privacy is not None:
        # A later round has spent more than this report knows of; its own report will tell.
        spent = change(put={"privacy": privacy}, condition="#last = :round", values={":round": record.round})
        with contextlib.suppress(place.rounds.meta.client.exceptions.ConditionalCheckFailedException):
            update_item(place.rounds, Key={"fleet": record.fleet, "key": STATE_KEY}, **spent)
    if profile is not None:
        # Of two, the later round's stays.
        newest = change(
            put={"profile": profile},
            condition="attribute_not_exists(#profile) OR #profile.#round <= :round",
            values={":round": record.round},
        )
        with contextlib.suppress(place.rounds.meta.client.exceptions.ConditionalCheckFailedException):
            update_item(place.rounds, Key={"fleet": record.fleet, "key": STATE_KEY}, **newest)
    count_refusals(place.rounds, report)
