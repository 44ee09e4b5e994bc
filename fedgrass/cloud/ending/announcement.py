"""The retained announcement, which follows the table: published, then the table is read, and again until both agree.

Whoever changes what is to be announced calls this afterwards. The last to publish has read the table after publishing, so what
stays is what the table says, in whatever order functions, jobs and their repetitions run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgrass.errors import RecordError
from fedgrass.protocol.messages import Announcement, Upload
from fedgrass.protocol.names import round_topic, update_prefix
from fedgrass.protocol.profile import StatisticsTask
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.secure_settings import announced_secure
from fedgrass.protocol.statistics_settings import tells_sums
from fedgrass.protocol.tables import Table, load_round, load_state

if TYPE_CHECKING:
    from mypy_boto3_iot_data import IoTDataPlaneClient

_ATTEMPTS = 20


def announce(rounds: Table, iot_data: IoTDataPlaneClient, fleet: str, bucket: str, alone: int | None = None) -> None:
    """Publish, retained, what devices are asked to do now; nothing if there is nothing.

    Devices that are away will find it when they come back.

    Parameters
    ----------
    alone
        The round of a job that is tried by itself, where no round was ever opened and so none holds the fleet.

    Raises
    ------
    RecordError
        If what is to be announced changes through every attempt.
    """
    # Published without comparing first: publishing the same again does no harm.
    wanted = _wanted(rounds, fleet, bucket, alone)
    for _ in range(_ATTEMPTS):
        iot_data.publish(topic=round_topic(fleet), qos=1, retain=True, payload=wanted)
        published, wanted = wanted, _wanted(rounds, fleet, bucket, alone)
        if wanted == published:
            return
    raise RecordError(f"fleet {fleet!r}: what is to be announced keeps changing; try again")


def _wanted(rounds: Table, fleet: str, bucket: str, alone: int | None) -> bytes:
    state = load_state(rounds, fleet)
    # `alone` counts only where no round was ever opened, so that no lock names one.
    number = state.open.round if state.open is not None else alone if not state.last else None
    if number is None:
        # An empty retained payload is how MQTT deletes a retained message.
        return b""
    record = load_round(rounds, fleet, number)
    if record.outcome is not None:
        return b""
    # In the order of a round: its own task, then the sum of the masks, then the devices' evaluation.
    if record.phase == "collecting":
        return task_of(record, bucket).encode()
    if record.phase == "aggregating" and record.sums is not None:
        return sums_of(record, bucket).encode()
    if record.phase == "aggregating" and record.question is not None:
        return question_of(record, bucket).encode()
    return b""


def task_of(record: RoundRecord, bucket: str) -> Announcement:
    """Return what a round asks of its devices."""
    return Announcement(
        fleet=record.fleet,
        round=record.round,
        task=record.settings.task,
        opened_at=record.opened_at,
        deadline=record.deadline,
        max_age=record.settings.max_age,
        base=record.base,
        cohort=record.cohort,
        fit=record.settings.announced_fit,
        update=record.settings.announced_update,
        # Devices that were silent when the round opened may join.
        secure=announced_secure(record.settings, 2 * record.asked),
        statistics=_statistics(record),
        personal=record.settings.personal.announced if record.settings.task == "fit" else None,
        promised_noise=record.settings.promised_noise,
        watch=record.watch,
        upload=Upload(bucket=bucket, prefix=update_prefix(record.fleet, record.round)),
    )


def _statistics(record: RoundRecord) -> StatisticsTask | None:
    if record.settings.task != "statistics":
        return None
    wanted = record.settings.statistics
    max_rows = wanted.max_rows if tells_sums(record.settings) else None
    return StatisticsTask(bins=wanted.bins, low=wanted.low, high=wanted.high, profile=record.bounds, max_rows=max_rows)


def sums_of(record: RoundRecord, bucket: str) -> Announcement:
    """Return what a round's job asks of the helpers of secure aggregation."""
    return Announcement(
        fleet=record.fleet,
        round=record.round,
        task="sum",
        opened_at=record.opened_at,
        deadline=record.deadline,
        base=record.base,
        cohort=record.cohort,
        sums=record.sums,
        upload=Upload(bucket=bucket, prefix=update_prefix(record.fleet, record.round)),
    )


def question_of(record: RoundRecord, bucket: str) -> Announcement:
    """Return what a round's job asks of the devices before the model is released."""
    if record.question is None:
        raise RecordError(f"round {record.round} of fleet {record.fleet!r} asks its devices nothing")
    return Announcement(
        fleet=record.fleet,
        round=record.round,
        task="evaluate",
        opened_at=record.question.asked_at,
        deadline=record.question.deadline,
        base=record.question.model,
        compare=record.base,
        cohort=record.cohort,
        watch=record.watch,
        upload=Upload(bucket=bucket, prefix=update_prefix(record.fleet, record.round)),
    )
