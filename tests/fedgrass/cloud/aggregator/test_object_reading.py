"""Updates are fetched by small signed requests, and every way in which S3 or the way to it fails is met."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.buckets import owned_by
from fedgrass.cloud.aggregator import object_reading, ranges
from fedgrass.cloud.aggregator.checksums import Checksum
from fedgrass.cloud.aggregator.object_reading import open_object
from fedgrass.cloud.aggregator.ranges import RangedBody
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.cloud.aggregator.signed_get import SignedGets
from fedgrass.cloud.aggregator.sources import UpdateReference, open_ahead
from fedgrass.errors import TransferError, UpdateError
from tests.fixtures.s3_server import ETAG, SECRET, S3Server, make_certificate, s3_server

CONTENT = random.Random(1).randbytes(300_000)
KEY = "updates/mill/000003/press a+b/update.safetensors"
PATH = "/updates/mill/000003/press%20a%2Bb/update.safetensors"


SESSION = boto3.Session("AKID", SECRET)


def boto3_client(
    server: S3Server, *, session: boto3.Session = SESSION, verify: str | None = None, **config: Any
) -> Any:
    chosen: dict[str, Any] = {
        "retries": {"mode": "standard", "max_attempts": 1},
        "s3": {"addressing_style": "path"},
        "connect_timeout": 20,
        "read_timeout": 20,
        **config,
    }
    return owned_by(
        session.client("s3", "eu-west-1", endpoint_url=server.url, config=Config(**chosen), verify=verify),
        "123456789012",
    )


class Client:
    """What reads from a server through a client of boto3's, and sleeps no longer than a moment."""

    def __init__(self, server: S3Server, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.slept: list[float] = []
        monkeypatch.setattr(object_reading._RETRY, "sleep", self.slept.append)
        self.s3 = s3
        self.gets = SignedGets(s3, sleep=self.slept.append)
        server.forget()
        server.objects["/b" + PATH] = CONTENT

    def learn(self) -> None:
        """Let boto3 show how it is done; what comes is then fetched by signed requests."""
        self.server.objects["/b/first"] = b"1"
        with open_object(self.gets, "b", UpdateReference("", "first", 1)) as stream:
            assert stream.read() == b"1"
        self.server.requests.clear()

    def open(self, key: str = KEY, size: int = len(CONTENT), etag: str = ETAG.strip('"'), connections: int = 1) -> Any:
        reference = UpdateReference("a", key, size, etag=etag, version_id="v/1")
        return open_object(self.gets, "b", reference, connections=connections)

    def read(self, block: int = 70_000, connections: int = 1) -> bytes:
        found, buffer = b"", bytearray(block)
        with self.open(connections=connections) as stream:
            while count := stream.readinto(buffer):
                found += buffer[:count]
        return found

    def by_boto3(self) -> int:
        """How many of the requests were boto3's."""
        return sum("amz-sdk-invocation-id" in request.headers for request in self.server.requests)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "localhost.pem")


@pytest.fixture(scope="module", params=["plain", "tls"])
def served(request: Any, certificate: Path) -> Iterator[tuple[S3Server, Any]]:
    with_tls = request.param == "tls"
    with s3_server(certificate if with_tls else None) as server:
        yield server, boto3_client(server, verify=str(certificate) if with_tls else None)


@pytest.fixture
def client(served: tuple[S3Server, Any], monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client(*served, monkeypatch)
    found.learn()
    return found


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as found:
        yield found


def test_objects_come_by_signed_requests_on_one_connection_that_name_version_and_owner(client: Client) -> None:
    for _ in range(3):
        assert client.read() == CONTENT
    assert client.by_boto3() == 0
    assert len({request.connection for request in client.server.requests}) == 1
    (one, *_) = client.server.requests
    assert one.path == "/b" + PATH + "?versionId=v%2F1"
    assert one.headers["if-match"] == ETAG
    assert one.headers["x-amz-expected-bucket-owner"] == "123456789012"


@pytest.mark.parametrize("fault", ["busy", "error", "close"])
def test_a_busy_or_broken_server_is_asked_again_after_a_random_pause(client: Client, fault: str) -> None:
    client.server.faults.extend([fault] * 3)
    assert client.read() == CONTENT
    assert client.by_boto3() == 0
    assert all(0 <= seconds <= 0.1 * 2**attempt for attempt, seconds in enumerate(client.slept))
    assert len(client.slept) == 3


def test_throttling_that_does_not_end_fails_the_round_with_boto3s_words(client: Client) -> None:
    client.server.faults.extend(["busy"] * 40)
    with pytest.raises(TransferError, match=r"SlowDown.*run the job again"):
        client.read()
    assert client.by_boto3() >= 1
    assert max(client.slept) > 0.2


@pytest.mark.parametrize("fault", ["reset", "end"])
def test_an_object_is_taken_up_in_its_middle_with_the_same_version(client: Client, fault: str) -> None:
    client.server.faults.extend([f"{fault}:100000", f"{fault}:1", f"{fault}:0", "busy"])
    assert client.read() == CONTENT
    ranges = [request.headers.get("range") for request in client.server.requests]
    # A reset may take what was under way with it.
    positions = [int(span[6:-1]) for span in ranges[1:] if span]
    assert ranges[0] is None
    assert len(positions) == 4
    assert positions == sorted(positions)
    assert {request.headers["if-match"] for request in client.server.requests} == {ETAG}


def test_a_server_that_stays_silent_is_given_up_in_time(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(server, boto3_client(server, read_timeout=0.2), monkeypatch)
    client.learn()
    server.faults.append("silent")
    assert client.read() == CONTENT
    assert client.by_boto3() == 0


def test_connections_closed_while_they_rested_cost_no_pause(client: Client) -> None:
    client.server.faults.extend(["goodbye", "goodbye"])
    for _ in range(3):
        assert client.read() == CONTENT
    assert client.slept == []
    assert len({request.connection for request in client.server.requests}) >= 1


def test_an_answer_after_which_the_server_closes_is_read_to_its_end(client: Client) -> None:
    client.server.faults.extend(["farewell", "farewell"])
    for _ in range(3):
        assert client.read() == CONTENT
    assert (client.slept, client.by_boto3()) == ([], 0)


def test_a_server_that_ignores_the_range_is_refused(client: Client) -> None:
    client.server.faults.extend(["end:1000", "whole"])
    with pytest.raises(TransferError, match="asked for bytes 1000"):
        client.read()


@pytest.mark.parametrize("broken", [False, True])
def test_bytes_that_are_not_the_objects_are_refused_by_its_checksum_also_after_a_break(
    client: Client, broken: bool
) -> None:
    client.server.faults.extend(["end:1000", "corrupt"] if broken else ["corrupt"])
    with pytest.raises(TransferError, match="crc32 checksum"):
        client.read()


def test_without_a_checksum_an_object_is_read_as_it_is(client: Client) -> None:
    client.server.checksum = False
    client.server.faults.append("corrupt")
    assert client.read() != CONTENT


def test_what_was_replaced_or_deleted_is_missing(client: Client) -> None:
    changes: list[dict[str, Any]] = [{"etag": "other"}, {"key": "no such key"}]
    for changed in changes:
        with pytest.raises(UpdateError, match="no longer there") as raised:
            client.open(**changed)
        assert raised.value.code == "missing"
    client.server.faults.append("end:1000")
    with client.open() as stream:
        del client.server.objects["/b" + PATH]
        with pytest.raises(UpdateError, match="no longer there"):
            stream.read()


def test_a_clock_that_is_wrong_is_told_once_and_corrected(client: Client) -> None:
    client.server.ahead = timedelta(hours=-3)
    for _ in range(3):
        assert client.read() == CONTENT
    assert client.by_boto3() == 0
    assert len(client.server.requests) == 4
    assert client.slept == []


def test_credentials_are_renewed_between_two_objects_and_when_s3_calls_them_expired(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def renewed() -> dict[str, str]:
        given.append(f"token-{len(given)}")
        # So near its end that botocore asks for others whenever it is asked.
        until = datetime.now(timezone.utc) + timedelta(minutes=11)
        return {"access_key": "AKID", "secret_key": SECRET, "token": given[-1], "expiry_time": until.isoformat()}

    inner = botocore.session.get_session()
    inner._credentials = RefreshableCredentials.create_from_metadata(renewed(), renewed, "test")  # type: ignore[attr-defined]
    client = Client(server, boto3_client(server, session=boto3.Session(botocore_session=inner)), monkeypatch)
    client.learn()
    used = len(given)
    assert client.read() == CONTENT
    server.tokens = {f"token-{used + 2}"}
    assert client.read() == CONTENT
    assert client.by_boto3() == 0
    tokens = [request.headers["x-amz-security-token"] for request in server.requests]
    assert tokens == [f"token-{used}", f"token-{used + 1}", f"token-{used + 2}"]
    assert len(client.slept) == 1


def test_credentials_that_cannot_be_renewed_fail_the_round_with_a_clear_error(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = [datetime.now(timezone.utc) + timedelta(minutes=11)]

    def over() -> dict[str, str]:
        return {"access_key": "AKID", "secret_key": SECRET, "token": "t", "expiry_time": until[0].isoformat()}

    inner = botocore.session.get_session()
    inner._credentials = RefreshableCredentials.create_from_metadata(over(), over, "test")  # type: ignore[attr-defined]
    client = Client(server, boto3_client(server, session=boto3.Session(botocore_session=inner)), monkeypatch)
    client.learn()
    until[0] = datetime.now(timezone.utc) - timedelta(minutes=1)
    with pytest.raises(TransferError, match=r"expired.*run the job again"):
        client.read()


def test_a_redirect_is_followed_by_boto3_and_the_next_object_goes_on_as_before(client: Client) -> None:
    client.server.elsewhere = client.server.url
    client.server.faults.append("moved")
    assert client.read() == CONTENT
    assert client.by_boto3() == 1
    assert client.read() == CONTENT
    assert client.by_boto3() == 1


def test_a_certificate_that_is_not_trusted_is_not_taken(
    client: Client, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    if client.server.url.startswith("http:"):
        return
    suspicious = Client(client.server, boto3_client(client.server), monkeypatch)
    # The pattern of the one with the trust of the other.
    suspicious.gets._patterns = client.gets._patterns
    assert all(pattern is not None and suspicious.gets._connect(pattern) for pattern in client.gets._patterns.values())
    with pytest.raises(TransferError, match="certificate verify failed"):
        suspicious.open()
    assert client.server.requests == []


def test_through_a_proxy_objects_come_by_boto3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = Client(server, boto3_client(server, proxies={"http": server.url}), monkeypatch)
    proxied.learn()
    assert proxied.read() == CONTENT
    assert proxied.by_boto3() == len(server.requests) > 0
    # A proxy is asked for whole URLs.
    assert server.requests[0].path.startswith(server.url + "/b/")


def test_who_answers_in_the_networks_place_answers_all(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = Client(server, boto3_client(server), monkeypatch)
    asked: list[str] = []

    def answer(request: Any, **_: Any) -> Any:
        asked.append(request.url)
        content = b"1" if request.url.endswith("/first") else CONTENT
        return AWSResponse(request.url, 200, HTTPHeaders.from_dict({"content-length": str(len(content))}), Raw(content))

    hooked.s3.meta.events.register("before-send.s3.GetObject", answer)
    hooked.learn()
    assert hooked.read() == hooked.read() == CONTENT
    assert server.requests == []
    assert len(asked) >= 3


class Raw(io.BytesIO):
    """A body that was never on a wire."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def test_many_threads_share_the_connections_and_each_gets_its_own_object(client: Client) -> None:
    contents = {f"k{i}": bytes([i]) * (1000 + i) for i in range(64)}
    client.server.objects |= {f"/b/{key}": content for key, content in contents.items()}
    client.server.faults.extend(["", "busy", "end:10", "goodbye", "close", "reset:5"] * 4)
    barrier = threading.Barrier(8)

    def read(some: int) -> None:
        barrier.wait(60)
        for key, content in list(contents.items())[some::8]:
            with client.open(key, len(content)) as stream:
                assert stream.read() == content

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert client.by_boto3() == 0


def test_updates_are_asked_for_ahead_without_threads_and_each_fault_falls_on_its_own(client: Client) -> None:
    contents = {f"k{i:02d}": bytes([i]) * (1000 + i) for i in range(40)}
    client.server.objects |= {f"/b/{key}": content for key, content in contents.items()}
    source = RoundUpdates(client.s3, "b", "mill", 3, gets=client.gets)
    references = [UpdateReference("a", key, len(content), etag="0123") for key, content in contents.items()]
    references.insert(20, UpdateReference("a", "gone", 5, etag="0123"))
    for _ in range(2):
        client.server.faults.extend(["", "busy", "close", "end:10", "goodbye", "error", "", "reset:5"] * 3)
        found = []
        for reference, opener in open_ahead(source, references, ahead=8):
            if reference.key == "gone":
                with pytest.raises(UpdateError, match="no longer there"):
                    opener()
                continue
            with opener() as stream:
                found.append((reference.key, stream.read()))
        assert found == list(contents.items())
        assert not [one for one in threading.enumerate() if one.name.startswith("open")]
    # boto3 tells of the missing one; the rest is asked for ahead.
    assert client.by_boto3() == 2


def test_what_was_asked_for_and_is_not_opened_is_given_up(client: Client) -> None:
    source = RoundUpdates(client.s3, "b", "mill", 3, gets=client.gets)
    references = [UpdateReference("a", KEY, len(CONTENT), etag="0123")] * 5
    opening = open_ahead(source, references, ahead=4)
    next(opening)[1]().close()
    opening.close()
    # What half an answer is left on is not used again.
    assert client.read() == client.read() == CONTENT


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts so small that the content has several, the last one short."""
    monkeypatch.setattr(ranges, "PART", 40_000)
    monkeypatch.setattr(object_reading, "WORTH", len(CONTENT))
    return len(range(0, len(CONTENT), 40_000))


@pytest.mark.parametrize("connections", [2, 3, 16])
def test_a_large_object_comes_in_ranges_by_several_connections_all_of_the_one_that_was_pinned(
    client: Client, parts: int, connections: int
) -> None:
    assert client.read(connections=connections) == client.read() == CONTENT
    head, *gets = client.server.requests[: 1 + parts]
    assert head.method == "HEAD"
    assert sorted(request.headers["range"] for request in gets) == sorted(
        [f"bytes={start}-{start + 39_999}" for start in range(0, 280_000, 40_000)] + ["bytes=280000-"]
    )
    assert {request.headers["if-match"] for request in (head, *gets)} == {ETAG}
    assert {urlsplit(request.path).query for request in (head, *gets)} == {"versionId=v%2F1"}
    assert 1 < len({request.connection for request in gets}) <= connections
    # By one connection it is fetched with one request, as ever.
    assert client.server.requests[1 + parts].headers.get("range") is None
    assert client.by_boto3() == 1


def test_each_range_is_taken_up_in_its_own_middle_and_asked_again_by_itself(client: Client, parts: int) -> None:
    client.server.faults.extend(["busy", "end:100", "reset:7", "close", "error", "goodbye", "end:39999", "farewell"])
    assert client.read(connections=3) == CONTENT
    begun = [int(request.headers["range"][6:].partition("-")[0]) for request in client.server.requests[1:]]
    assert len(begun) >= parts + 5
    assert 100 in {start % 40_000 for start in begun}
    assert client.by_boto3() == 1


def test_a_range_that_never_comes_or_is_another_fails_the_round(client: Client, parts: int) -> None:
    client.server.faults.extend(["", "whole"])
    with pytest.raises(TransferError, match=r"asked for bytes \d+ to \d+, answered with 300000"):
        client.read(connections=2)
    client.server.faults.clear()
    client.server.faults.extend(["busy"] * 80)
    with pytest.raises(TransferError, match=r"SlowDown.*run the job again"):
        client.read(connections=2)


@pytest.mark.parametrize("etag", ["", ETAG.strip('"')])
def test_an_object_that_is_replaced_between_two_ranges_is_missing_and_stays_so(
    client: Client, parts: int, etag: str
) -> None:
    with client.open(connections=2, etag=etag) as stream:
        assert stream.read(40_000) == CONTENT[:40_000]
        client.server.etag, client.server.objects["/b" + PATH] = '"other"', bytes(len(CONTENT))
        for _ in range(2):
            with pytest.raises(UpdateError, match="no longer there"):
                stream.readall()


@pytest.mark.parametrize("fault", ["corrupt", ""])
def test_the_checksum_of_the_whole_holds_over_ranges_too(client: Client, parts: int, fault: str) -> None:
    client.server.faults.extend(["", "", fault])
    if fault:
        with pytest.raises(TransferError, match="crc32 checksum"):
            client.read(connections=2)
    else:
        assert client.read(connections=2) == CONTENT


@pytest.mark.parametrize("why", ["refused", "clock", "size", "gone"])
def test_what_s3_does_not_tell_of_is_read_by_one_request_with_its_own_words(
    client: Client, parts: int, why: str
) -> None:
    if why in {"refused", "clock"}:
        client.server.answers_head = why != "refused"
        client.server.ahead = timedelta(hours=-3 if why == "clock" else 0)
        assert client.read(connections=2) == CONTENT
    elif why == "size":
        with pytest.raises(TransferError, match="asked for bytes 0 to 400000"):
            client.open(size=400_000, connections=2)
    else:
        with pytest.raises(UpdateError, match="no longer there"):
            client.open(key="gone", connections=2)
    assert not any("range" in request.headers for request in client.server.requests)


def test_few_large_updates_share_the_connections_and_many_are_read_as_before(
    client: Client, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "CONNECTIONS", 4)
    source = RoundUpdates(client.s3, "b", "mill", 3, gets=client.gets)
    for count, ranged in ((1, True), (2, True), (3, False), (20, False)):
        client.server.requests.clear()
        references = [UpdateReference("a", KEY, len(CONTENT), etag="0123")] * count
        opening = open_ahead(source, references)
        streams = [opener() for _, opener in opening]
        for stream in streams:
            with stream:
                assert stream.read() == CONTENT
        gets = [request for request in client.server.requests if request.method == "GET"]
        assert len(gets) == count * (parts if ranged else 1)
        assert len({request.connection for request in gets}) <= max(4, count)
    # What was asked for and never opened has begun nothing.
    client.server.requests.clear()
    opening = open_ahead(source, references[:2])
    next(opening)
    opening.close()
    assert client.server.requests == []


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(st.integers(1, 500), st.sampled_from([63, 64, 65, 127, 128, 129, 256])),
    connections=st.integers(2, 5),
    blocks=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    late=st.integers(0, 8),
)
def test_ranges_come_in_order_whatever_their_turn_and_no_more_than_a_window_is_under_way(
    size: int, connections: int, blocks: list[int], late: int
) -> None:
    content, taken, reached, others = random.Random(size).randbytes(size), io.BytesIO(), [0], threading.Event()

    class Part(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            # Less at a time than is asked for, as sockets give.
            return super().readinto(memoryview(buffer)[:50])

    def open_part(start: int, end: int) -> Any:
        window = connections + 1
        assert start < (taken.tell() // 64 + window) * 64
        # One range is slow: the others of its window come first.
        if start == late * 64:
            last = max(range(0, size, 64)) if size <= start + window * 64 else start + 64
            assert last <= start or others.wait(60)
        elif start > late * 64:
            others.set()
        reached[0] = max(reached[0], end)
        return Part(content[start:end])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranges, "PART", 64)
        with RangedBody(open_part, size, connections, taken.write) as stream:
            found, sizes = b"", itertools.cycle(blocks)
            while block := stream.read(next(sizes)):
                found += block
        assert found == taken.getvalue() == content
        assert reached == [size]


def test_ranges_that_are_given_up_end_with_their_stream(client: Client, parts: int) -> None:
    with client.open(connections=3) as stream:
        assert stream.read(10) == CONTENT[:10]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("range")]
    assert client.read(connections=3) == CONTENT


def test_a_large_object_that_was_promised_comes_whole_or_not_at_all(client: Client, tmp_path: Path) -> None:
    bucket, digest = Bucket(client.s3, "b"), hashlib.sha256(CONTENT).hexdigest()
    client.server.faults.extend(["", "end:70000"])
    bucket.download(KEY, tmp_path / "k", size=len(CONTENT), sha256=digest)
    assert (tmp_path / "k").read_bytes() == CONTENT


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    name=st.sampled_from(["crc64nvme", "crc32c", "crc32", "sha256", "sha1"]),
)
def test_checksums_of_pieces_are_botocores_of_the_whole(content: bytes, cuts: list[int], name: str) -> None:
    from botocore.httpchecksum import _CHECKSUM_CLS  # type: ignore[attr-defined] # not in the stubs

    reference = _CHECKSUM_CLS[name]()
    reference.update(content)
    value = reference.b64digest()
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for expected, holds in ((content, True), (content + b"0", False)):
        checksum = Checksum.of({f"x-amz-checksum-{name}": value})
        assert checksum is not None
        for begin, end in itertools.pairwise(places):
            checksum.update(memoryview(content)[begin:end])
        if not holds:
            checksum.update(expected[len(content) :])
        assert checksum.holds() is holds
    assert Checksum.of({f"x-amz-checksum-{name}": value + "-3"}) is None
    assert Checksum.of({f"x-amz-checksum-{name}": "no base64!"}) is None


def test_botocores_certificates_and_proxies_are_where_they_are_expected(client: Client) -> None:
    # Else every object would come by boto3, right and slowly, with one line in the log.
    assert all(pattern is not None for pattern in client.gets._patterns.values())


def test_another_botocore_than_expected_costs_speed_only(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Client(server, boto3_client(server), monkeypatch)
    monkeypatch.setattr(other.s3._endpoint, "http_session", Renamed(other.s3._endpoint.http_session))
    other.learn()
    assert other.read() == CONTENT
    assert other.by_boto3() == 1


class Renamed:
    """botocore's session with other names inside."""

    def __init__(self, session: Any) -> None:
        self.send = session.send
