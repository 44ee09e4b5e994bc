"""Who was in time: whose update was on the list of the round's job, whenever the notice of it came.

An update and its notice go different ways: where a quorum ends the collecting, the notice of an update that the job has found may
come afterwards. So the list decides. A notice that comes too late is written down as late and then compared with the list; who
finishes the round compares all late ones. Whichever of the two comes second sees what the other wrote.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from fedgrass.cloud.ending.reports import read_object
from fedgrass.errors import AggregationError
from fedgrass.protocol.names import report_prefix, update_key
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import Participation, RoundRecord, participation_key, round_key
from fedgrass.protocol.tables import Table, load_round
from fedgrass.protocol.writes import change, transact

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MAX_LIST_BYTES = 64 << 20  # some 300,000 updates; functions have 512 MB


class _Entry(BaseModel, defer_build=True):
    key: str


class _List(BaseModel, defer_build=True):
    updates: tuple[_Entry, ...]


def list_key(fleet: str, number: int) -> str:
    """Object key of the list of what a round's job combines; the first job that looked writes it."""
    return f"{report_prefix(fleet, number)}updates.json"


def recount(rounds: Table, s3: S3Client, bucket: str, record: RoundRecord) -> None:
    """Count as in time each device that is recorded as late but whose update the job listed; safe to repeat.

    Parameters
    ----------
    rounds
        The rounds' table.
    s3
        The boto3 client.
    bucket
        The fleet's bucket.
    record
        The round, as it was when its job had pinned the list.
    """
    # Most rounds have nobody late: one read instead of all participations.
    if not load_round(rounds, record.fleet, record.round).late:
        return
    for part in participations(rounds, record.fleet, record.round, consistent=True):
        count_if_listed(rounds, s3, bucket, record, part)


def count_if_listed(rounds: Table, s3: S3Client, bucket: str, record: RoundRecord, part: Participation) -> bool:
    """Count a device as in time if it is recorded as late but its update was on the job's list.

    Parameters
    ----------
    rounds
        The rounds' table.
    s3
        The boto3 client.
    bucket
        The fleet's bucket.
    record
        The round.
    part
        The device's part in it.

    Returns
    -------
    bool
        Whether this call changed the count; a repeated call does not.
    """
    if not part.late or part.status != "uploaded":
        return False
    try:
        # By key, not by ETag: whoever sent the object that was listed was in time, even if another replaced it since.
        if update_key(record.fleet, record.round, part.thing) not in _listed(
            s3, bucket, record.fleet, record.round, record.cohort.salt
        ):
            return False
    except LookupError:  # no job has looked yet: the one that does compares
        return False
    in_time = change(
        put={"late": False},
        condition="#late = :true AND #status = :uploaded",
        values={":true": True, ":uploaded": "uploaded"},
    )
    # Both counters and the mark in one transaction: a repetition finds the mark gone and moves nothing.
    count = change(
        add={"late": -1, "late_updates": -1, "uploaded" if part.asked else "joined": 1, "bytes_uploaded": part.bytes}
    )
    keys = (participation_key(record.round, part.thing), in_time), (round_key(record.round), count)
    actions = [
        {"Update": {"TableName": rounds.name, "Key": {"fleet": record.fleet, "key": key}, **update}}
        for key, update in keys
    ]
    return transact(rounds, actions) is None


# A warm function sees many late notices of one round; the list never changes, so it is read once.
@lru_cache(maxsize=4)
def _listed(s3: S3Client, bucket: str, fleet: str, number: int, _salt: str) -> frozenset[str]:
    """Return the keys on a round's list, which never changes; raises `LookupError` if there is none yet.

    A cohort's salt is of one round, also where a fleet started over.
    """
    key = list_key(fleet, number)
    content = read_object(s3, bucket, key, max_bytes=_MAX_LIST_BYTES)
    if content is None:
        raise LookupError(key)
    try:
        found = _List.model_validate_json(content)
    except ValidationError as error:
        raise AggregationError(f"s3://{bucket}/{key}: is not an update list; move it away to make a new one") from error
    return frozenset(entry.key for entry in found.updates)
