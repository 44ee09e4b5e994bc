"""Buckets: whose they are, how those that we make are protected, and how one is removed with all it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from fedgrass.buckets import owned_by
from fedgrass.cloud.infrastructure.script import Caller, error_code, is_gone, removed
from fedgrass.errors import InfrastructureError

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType
    from mypy_boto3_s3.type_defs import (
        LifecycleRuleTypeDef,
        ObjectIdentifierTypeDef,
        PublicAccessBlockConfigurationTypeDef,
    )

_PRIVATE: PublicAccessBlockConfigurationTypeDef = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
_MISSING = {"404", "NoSuchBucket"}


def own_s3(session: Session, caller: Caller) -> S3Client:
    """Return a client of S3 whose every call is refused by a bucket of another account."""
    return owned_by(session.client("s3"), caller.account)


def bucket_exists(s3: S3Client, bucket: str, *, otherwise: str) -> bool:
    """Return whether the bucket exists and is the caller's.

    Parameters
    ----------
    otherwise
        What to do if the bucket is somebody else's.

    Raises
    ------
    InfrastructureError
        If it is another account's or region's, or these credentials may not look: AWS tells these apart by status only.
    """
    try:
        # HeadBucket has no body, so the status is all that tells the reasons apart.
        found = s3.head_bucket(Bucket=bucket).get("BucketRegion")
    except ClientError as error:
        if error_code(error) in _MISSING:
            return False
        raise InfrastructureError(f"bucket {bucket!r} {_why(error)}; {otherwise}") from error
    if found not in (None, s3.meta.region_name):  # the client has followed a redirection there
        raise InfrastructureError(f"bucket {bucket!r} is in another region ({found}); {otherwise}")
    return True


def _why(error: ClientError) -> str:
    where = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    match error_code(error):
        case "301" | "PermanentRedirect":
            return f"is in another region ({where or 'AWS does not say which'})"
        case "400" | "BadRequest":
            return "cannot be looked at: the credentials have expired or are of another region or partition"
        case "403" | "AccessDenied":
            return "exists in another account, or these credentials lack s3:ListBucket on it"
        case code:
            return f"cannot be looked at ({code})"


def ensure_bucket(s3: S3Client, bucket: str, caller: Caller, *, otherwise: str) -> None:
    """Make a bucket of the account's own where there is none, and protect it where it is not protected yet.

    Nobody reads it in public or without TLS, and uploads that were never finished go. A policy or rules that somebody
    gave it
    are left as they are.

    Parameters
    ----------
    s3
        The boto3 client, which sends the account's number along: a stranger's bucket is never used.
    bucket
        The bucket's name.
    caller
        Account, region and partition.
    otherwise
        What to do if the name is another account's; it ends the error's message.

    Raises
    ------
    InfrastructureError
        If the name is taken.
    """
    if not bucket_exists(s3, bucket, otherwise=otherwise):
        # us-east-1 is the one region that must not be named.
        if caller.region == "us-east-1":
            s3.create_bucket(Bucket=bucket)
        else:
            region: BucketLocationConstraintType = caller.region  # type: ignore[assignment]  # any region that there is
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    # Each time: it costs one request, and somebody may have opened the bucket.
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=_PRIVATE)
    # A bucket without a policy answers with an error, not with an empty one.
    if _lacks(s3.get_bucket_policy, bucket, "NoSuchBucketPolicy"):
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(_over_tls_only(bucket, caller)))
    if _lacks(s3.get_bucket_lifecycle_configuration, bucket, "NoSuchLifecycleConfiguration"):
        unfinished: LifecycleRuleTypeDef = {
            "ID": "unfinished-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        }
        s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [unfinished]})


def _lacks(get: Callable[..., object], bucket: str, code: str) -> bool:
    try:
        get(Bucket=bucket)
    except ClientError as error:
        if error_code(error) != code:
            raise
        return True
    return False


def _over_tls_only(bucket: str, caller: Caller) -> dict[str, object]:
    arn = f"arn:{caller.partition}:s3:::{bucket}"
    statement = {
        "Sid": "OnlyOverTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/*"],
        # AWS's own rule for "TLS only": a string, not a boolean.
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def delete_bucket(s3: S3Client, bucket: str) -> None:
    """Delete a bucket with every version of all that it holds; what devices still send is deleted too.

    Raises
    ------
    InfrastructureError
        If an object cannot be deleted.
    """

    def empty_and_delete() -> None:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            # A page has at most 1,000 versions, which is also the most that one DeleteObjects takes.
            objects: list[ObjectIdentifierTypeDef] = [
                {"Key": one["Key"], "VersionId": one["VersionId"]} for one in found
            ]
            if not objects:
                continue
            done = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            for problem in done.get("Errors", [])[:1]:
                raise InfrastructureError(
                    f"s3://{bucket}/{problem['Key']} cannot be deleted: {problem['Code']}: {problem.get('Message', '')}"
                )
        s3.delete_bucket(Bucket=bucket)

    # Devices may send while it is emptied: DeleteBucket then says BucketNotEmpty, and all is tried again.
    removed(empty_and_delete)


def tags(s3: S3Client, bucket: str) -> dict[str, str]:
    """Return a bucket's tags; none if it has none, or is not the caller's to read."""
    try:
        found = s3.get_bucket_tagging(Bucket=bucket)["TagSet"]
    except ClientError as error:
        # Listed a moment ago, and gone or another's by now: none of the fleet's, in any case.
        if is_gone(error) or error_code(error) in {"NoSuchTagSet", "AccessDenied", "403"}:
            return {}
        raise
    return {tag["Key"]: tag["Value"] for tag in found}


def tag(s3: S3Client, bucket: str, **more: str) -> None:
    """Add tags to a bucket's, where colons in a name are written as two underscores."""
    given = {**tags(s3, bucket), **{name.replace("__", ":"): value for name, value in more.items()}}
    s3.put_bucket_tagging(
        Bucket=bucket, Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in given.items()]}
    )
