"""Calls to the account's own buckets only: names are global in AWS, and a bucket of the right name may be anybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client

_MEMBERS = ("ExpectedBucketOwner", "ExpectedSourceBucketOwner")


def owned_by(s3: S3Client, account: str) -> S3Client:
    """Return the client, which from now on has S3 refuse every call to a bucket of another account.

    Also for the calls that transfers make. https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html
    """

    def add(params: dict[str, object], model: OperationModel, **_: object) -> dict[str, object]:
        shape = model.input_shape
        if shape is None:
            return params
        # What the caller gave itself stands last, and wins.
        return {**{name: account for name in _MEMBERS if name in shape.members}, **params}

    # The stubs know handlers that return nothing; what one of this event returns takes the place of the parameters.
    handler: Callable[..., Any] = add
    s3.meta.events.register("provide-client-params.s3", handler)
    return s3
