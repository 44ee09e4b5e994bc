"""What S3 answers to HeadBucket, which has no body: told apart by status, through the real client."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

from fedgrass.buckets import owned_by
from fedgrass.cloud.infrastructure.storage import bucket_exists
from fedgrass.errors import InfrastructureError

ACCOUNT = "123456789012"


@contextmanager
def s3_that_answers(status: int, headers: dict[str, str]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    asked: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def looked_at(status: int, **headers: str) -> bool:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with s3_that_answers(status, named) as (endpoint, asked):
        session = boto3.Session("key", "secret", region_name="us-east-1")
        s3 = owned_by(session.client("s3", endpoint_url=endpoint), ACCOUNT)
        try:
            return bucket_exists(s3, "the-bucket", otherwise="choose another")
        finally:
            assert {one["x-amz-expected-bucket-owner"] for one in asked} == {ACCOUNT}


def test_a_bucket_is_there_or_is_not() -> None:
    assert looked_at(200)
    assert not looked_at(404)


def test_a_bucket_that_the_client_was_redirected_to_is_in_another_region() -> None:
    assert looked_at(200, x_amz_bucket_region="us-east-1")
    with pytest.raises(InfrastructureError, match=r"in another region \(eu-west-1\); choose another"):
        looked_at(200, x_amz_bucket_region="eu-west-1")


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (301, {"x_amz_bucket_region": "eu-west-1"}, r"in another region \(eu-west-1\)"),
        (400, {}, "credentials have expired or are of another region"),
        (403, {}, "exists in another account, or these credentials lack s3:ListBucket"),
        (405, {}, "cannot be looked at"),
    ],
)
def test_why_a_bucket_cannot_be_used_is_told_apart(status: int, headers: dict[str, str], why: str) -> None:
    with pytest.raises(InfrastructureError, match=f"'the-bucket' .*{why}.*; choose another"):
        looked_at(status, **headers)
