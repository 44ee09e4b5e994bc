"""S3 where moto differs from AWS: whose a bucket is, and conditions of a bucket's policy."""

from __future__ import annotations

import copy
import json

from moto.s3.models import FakeBucket
from werkzeug import Request, Response

from fedgrass.local.aws.account import ACCOUNT
from fedgrass.local.aws.overrides import override

_OWNERS = ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner")
_DENIED = (
    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)


def layer(request: Request) -> Response | None:
    """Refuse what was meant for another account's bucket: all buckets here are of one account."""
    if any(request.headers.get(header) not in {None, ACCOUNT} for header in _OWNERS):
        return Response(_DENIED, status=403, content_type="application/xml")
    return None


def repair() -> None:
    """Have moto leave out a policy's statements with a condition: it would apply them whatever the condition says.

    Those that we have refuse requests without TLS, which stands for loopback here.
    """
    permission = FakeBucket.get_permission

    def get_permission(bucket: FakeBucket, action: str, resource: str) -> object:
        if bucket.policy is None:
            return permission(bucket, action, resource)
        document = json.loads(bucket.policy)
        applied = [statement for statement in document["Statement"] if "Condition" not in statement]
        policy = json.dumps({**document, "Statement": applied}).encode() if applied else None
        # A copy: the bucket itself must keep the policy as it was put.
        shown = copy.copy(bucket)
        shown.policy = policy
        return permission(shown, action, resource)

    override(FakeBucket, "get_permission", get_permission)
