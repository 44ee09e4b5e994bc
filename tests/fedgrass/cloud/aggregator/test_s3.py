from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from fedgrass.cloud.aggregator import object_reading as module
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.errors import ReleaseError, TransferError, UpdateError
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet


def refuse(code: str, operation: str = "GetObject") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


def test_an_absent_object_is_none_and_a_large_one_is_refused(fleet: Fleet) -> None:
    bucket = fleet.clients.bucket
    assert bucket.read("nothing", max_bytes=10) is None
    bucket.write("some", b"12345")
    assert bucket.read("some", max_bytes=5) == b"12345"
    with pytest.raises(TransferError, match="at most 4"):
        bucket.read("some", max_bytes=4)


def test_an_absent_object_is_none_also_where_s3_denies_rather_than_tells() -> None:
    class Denying:
        def __init__(self, *keys: str) -> None:
            self._keys = keys

        def get_object(self, **_: Any) -> None:
            raise refuse("AccessDenied")

        def list_objects_v2(self, **_: Any) -> dict[str, Any]:
            return {"Contents": [{"Key": key} for key in self._keys]}

    assert Bucket(Denying(), "b").read("a/key", max_bytes=1) is None  # type: ignore[arg-type]
    assert Bucket(Denying("a/key.bak"), "b").read("a/key", max_bytes=1) is None  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="AccessDenied"):
        Bucket(Denying("a/key"), "b").read("a/key", max_bytes=1)  # type: ignore[arg-type]


def test_the_first_writer_of_a_pinned_object_decides_what_it_holds(fleet: Fleet) -> None:
    bucket = fleet.clients.bucket
    assert bucket.write_first("list", b"first") == b"first"
    assert bucket.write_first("list", b"second") == b"first"


def test_a_published_object_is_never_overwritten(fleet: Fleet, tmp_path: Path) -> None:
    bucket = fleet.clients.bucket
    (tmp_path / "f").write_bytes(b"model")
    bucket.publish("models/m", tmp_path / "f")
    bucket.publish("models/m", tmp_path / "f")
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(ReleaseError, match="never overwritten"):
        bucket.publish("models/m", tmp_path / "f")
    assert bucket.read("models/m", max_bytes=100) == b"model"


def test_a_download_that_is_not_what_was_promised_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    bucket = fleet.clients.bucket
    bucket.write("k", b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()
    bucket.download("k", tmp_path / "k", size=5, sha256=digest)
    assert (tmp_path / "k").read_bytes() == b"12345"
    for size, sha256 in ((4, digest), (6, digest), (5, "0" * 64)):
        with pytest.raises(TransferError, match="not what the manifest says"):
            bucket.download("k", tmp_path / "k", size=size, sha256=sha256)


def updates(fleet: Fleet) -> RoundUpdates:
    return RoundUpdates(fleet.s3, fleet.clients.bucket.name, FLEET, ROUND)


def test_the_list_holds_the_rounds_objects_and_nothing_that_was_deleted(fleet: Fleet) -> None:
    fleet.put("press-a", b"aa")
    fleet.put("press-b", b"bbb")
    fleet.s3.delete_object(Bucket="fedgrass-test", Key=f"updates/{FLEET}/{ROUND:06d}/press-b/update.safetensors")
    fleet.s3.put_object(Bucket="fedgrass-test", Key=f"updates/{FLEET}/{ROUND:06d}/press-a/notes.txt", Body=b"n")
    fleet.s3.put_object(Bucket="fedgrass-test", Key=f"updates/{FLEET}/{ROUND + 1:06d}/c/update.safetensors", Body=b"n")
    found = {(r.thing, r.bytes) for r in updates(fleet).list()}
    assert found == {("press-a", 2), ("", 1)}


def test_what_was_pinned_is_read_even_when_it_was_replaced_since(fleet: Fleet) -> None:
    fleet.put("press-a", b"first")
    (pinned,) = updates(fleet).list()
    fleet.put("press-a", b"later and longer")
    with updates(fleet).open(pinned) as stream:
        assert stream.read() == b"first"


def test_without_versions_a_replaced_update_is_missing_rather_than_another(fleet: Fleet) -> None:
    fleet.put("press-a", b"first")
    (pinned,) = updates(fleet).list()
    fleet.put("press-a", b"later")
    unversioned = replace(pinned, version_id=None)
    with pytest.raises(UpdateError, match="no longer there") as raised:
        updates(fleet).open(unversioned)
    assert raised.value.code == "missing"


class Breaking:
    """Bodies that break off after some bytes, each time it is read again."""

    def __init__(self, content: bytes, every: int, failures: int) -> None:
        self.content = content
        self.every = every
        self.failures = failures
        self.ranges: list[str] = []
        self.meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.ranges.append(arguments.get("Range", ""))
        start = int(arguments["Range"][6:-1]) if "Range" in arguments else 0
        status, headers = 200, {"content-length": str(len(self.content) - start)}
        if start:
            status, headers["content-range"] = 206, f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return {
            "Body": BreakingBody(self, start),
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        }


class BreakingBody(io.BytesIO):
    def __init__(self, of: Breaking, start: int) -> None:
        super().__init__(of.content[start:])
        self._of = of

    def readinto(self, buffer: Any) -> int:
        if self._of.failures > 0 and self.tell() >= self._of.every:
            self._of.failures -= 1
            raise ReadTimeoutError(endpoint_url="http://s3")
        return super().readinto(memoryview(buffer)[: self._of.every])


def test_a_broken_connection_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._RETRY, "sleep", lambda seconds: None)
    content = bytes(range(100))
    client = Breaking(content, every=30, failures=2)
    reference = UpdateReference(thing="a", key="k", bytes=100, etag="e")
    with RoundUpdates(client, "b", FLEET, ROUND).open(reference) as stream:  # type: ignore[arg-type]
        assert stream.read() == content
    assert client.ranges == ["", "bytes=30-", "bytes=60-"]


def test_a_connection_that_stays_broken_fails_the_round_not_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._RETRY, "sleep", lambda seconds: None)
    client = Breaking(bytes(100), every=0, failures=1000)
    reference = UpdateReference(thing="a", key="k", bytes=100, etag="e")
    with (
        RoundUpdates(client, "b", FLEET, ROUND).open(reference) as stream,  # type: ignore[arg-type]
        pytest.raises(TransferError, match="run the job"),
    ):
        stream.read()
