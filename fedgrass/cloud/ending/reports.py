"""A round's report: what its job proposes before the outcome is written, and what is kept when all is done.

The proposal (``proposal.json``) carries the lineage; the record decides. The report is written once, last, with the outcome of
the record, and only for a round that its job ended: what a cancelled round's job found is nobody's to count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from fedgrass.errors import AggregationError, RecordError
from fedgrass.protocol.names import report_key, report_prefix
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import MAX_REPORT_BYTES, RoundReport

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def proposal_key(fleet: str, number: int) -> str:
    """Object key of what a round's job proposes."""
    return f"{report_prefix(fleet, number)}proposal.json"


def find_report(s3: S3Client, bucket: str, record: RoundRecord) -> RoundReport | None:
    """Read a round's report.

    Parameters
    ----------
    s3
        The boto3 client.
    bucket
        The fleet's bucket.
    record
        The round; a report of another round, fleet or base under its key is an error.

    Returns
    -------
    RoundReport or None
        None if there is none yet.

    Raises
    ------
    AggregationError
        If it cannot be read, or is not one of this round.
    """
    return _read(s3, bucket, report_key(record.fleet, record.round), record)


def find_proposal(s3: S3Client, bucket: str, record: RoundRecord) -> RoundReport | None:
    """Read what a round's job proposed.

    Parameters
    ----------
    s3
        The boto3 client.
    bucket
        The fleet's bucket.
    record
        The round.

    Returns
    -------
    RoundReport or None
        None if the job has not proposed anything yet.

    Raises
    ------
    AggregationError
        If it cannot be read, or is not one of this round.
    """
    return _read(s3, bucket, proposal_key(record.fleet, record.round), record)


def write_first(s3: S3Client, bucket: str, key: str, record: RoundRecord, report: RoundReport) -> RoundReport:
    """Write a report unless one exists, and return the one that exists then.

    Parameters
    ----------
    s3
        The boto3 client.
    bucket
        The fleet's bucket.
    key
        The report's key, or the proposal's.
    record
        The round.
    report
        What is written if nothing is there.

    Returns
    -------
    RoundReport
        The first that was written, by this call or by an earlier attempt.

    Raises
    ------
    AggregationError
        If what is there is not of this round.
    """
    try:
        # IfNoneMatch: S3 writes only if there is no such object, so the first report stays.
        s3.put_object(Bucket=bucket, Key=key, Body=report.to_json(), IfNoneMatch="*")
    except ClientError as error:
        if _code(error) not in {"PreconditionFailed", "412"}:
            raise
        return _read(s3, bucket, key, record) or report
    return report


def _read(s3: S3Client, bucket: str, key: str, record: RoundRecord) -> RoundReport | None:
    content = read_object(s3, bucket, key, max_bytes=MAX_REPORT_BYTES)
    if content is None:
        return None
    try:
        report = RoundReport.read(content, name=f"s3://{bucket}/{key}")
    except RecordError as error:
        raise AggregationError(str(error)) from error
    # A fleet of the same name that was destroyed and made again may have left a report under the same key.
    expected = (record.fleet, record.round, record.base.parameters_sha256)
    if (report.fleet, report.round, report.base.parameters_sha256) != expected:
        raise AggregationError(
            f"s3://{bucket}/{key}: is of round {report.round} of fleet {report.fleet!r} from base "
            f"{report.base.version}, expected round {record.round} of {record.fleet!r} from {record.base.version}"
        )
    return report


def read_object(s3: S3Client, bucket: str, key: str, *, max_bytes: int) -> bytes | None:
    """Read a bounded object.

    Parameters
    ----------
    s3
        The boto3 client.
    bucket
        The bucket.
    key
        The object's key.
    max_bytes
        Size above which it is refused, before any of it is read.

    Returns
    -------
    bytes or None
        The content; None if there is no such object.

    Raises
    ------
    AggregationError
        If it has more than ``max_bytes``.
    """
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        # Without ListBucket S3 answers 403 for a key that does not exist, so that nobody can guess names.
        if _code(error) == "NoSuchKey" or (_code(error) == "AccessDenied" and not _exists(s3, bucket, key)):
            return None
        raise
    # Before the body is read: the size is in the headers.
    if answer["ContentLength"] > max_bytes:
        raise AggregationError(f"s3://{bucket}/{key}: {answer['ContentLength']} bytes; at most {max_bytes}")
    content: bytes = answer["Body"].read()
    return content


def _exists(s3: S3Client, bucket: str, key: str) -> bool:
    """Whether there is such an object: what is missing S3 denies to a role that may list some prefixes only."""
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(entry["Key"] == key for entry in listed.get("Contents", ()))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
