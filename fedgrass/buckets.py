"""Buckets are the account's own: names are one for all of AWS, and a bucket of the right name may be anybody's."""

from __future__ import annotations

from typing import Any

_MEMBERS = ("ExpectedBucketOwner", "ExpectedSourceBucketOwner")


def owned_by(s3: Any, account: str) -> Any:
    """Return the client, which from now on has S3 refuse every call to a bucket of another account.

    Also for the calls that transfers make. https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html
    """

    def add(params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        return {**{name: account for name in _MEMBERS if name in model.input_shape.members}, **params}

    s3.meta.events.register("provide-client-params.s3", add)
    return s3
