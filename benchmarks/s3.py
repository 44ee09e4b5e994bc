"""What it costs to fetch updates from S3: processor time per object, and MB per second of a processor.

``python -m benchmarks.s3`` runs, each in a process of its own and in turns: ours as the aggregation job reads (`RoundUpdates`,
opened ahead), boto3's ``get_object``, awscrt's S3 client, and a bare socket, which signs nothing and checks nothing. A
large object also as the job reads one that it has alone: in ranges, by two connections (``ranges``). Small and
large objects, plain and over TLS, come from one server on this machine, whose own time is not counted, and which checks no
signatures; it gives a CRC-64 as S3 does, which ours, boto3 and awscrt compare. Of several runs the one with the least
processor time counts.

A processor's seconds, not a clock's: the server takes as much of the same machine as they do. But for one row,
``large_tls_paced``, where the server gives each connection 90 MB a second, so that nobody's processors are busy: there
``mb_per_second`` tells what connections side by side are worth. Needs the extras ``cloud`` and ``edge`` (for awscrt).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.paired import say

_BLOCK = 1 << 20
_AHEAD = 16
_PACE_MB = 90  # a second for a connection: what S3 is planned with, 85 to 90 (AWS, "Performance design patterns for Amazon S3")
_MEMORY_MB = 100  # what an intake may take
_ATTEMPTS_SECONDS = 300.0


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", type=int, default=400_000, help="bytes of a small object")
    parser.add_argument("--large", type=int, default=128 << 20, help="bytes of a large object")
    parser.add_argument("--objects", type=int, default=300, help="small ones in a run; of large ones there are four")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--certificate", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender == "server":
        serve(arguments)
    elif arguments.contender:
        print(json.dumps(contend(arguments)))
    else:
        with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
            print(json.dumps(measure(arguments, Path(folder))))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures."""
    certificate = make_certificate(folder)
    found: dict[str, Any] = {
        "benchmark": "s3",
        "small_bytes": arguments.small,
        "large_bytes": arguments.large,
        "objects": arguments.objects,
    }
    for way in ("plain", "tls"):
        for size in ("small", "large"):
            found[f"{size}_{way}"] = _side_by_side(arguments, certificate if way == "tls" else "", size)
    found["large_tls_paced"] = _side_by_side(arguments, certificate, "large", pace=_PACE_MB)
    small, large = found["small_tls"], found["large_tls"]
    found["small_tls_ms"] = small["ours"]["ms_per_object"]
    found["small_tls_times_boto3"] = round(small["boto3"]["ms_per_object"] / small["ours"]["ms_per_object"], 2)
    found["large_tls_times_awscrt"] = round(
        large["ours"]["mb_per_processor_second"] / large["awscrt"]["mb_per_processor_second"], 2
    )
    found["peak_mb"] = max(
        found[row][name]["peak_mb"]
        for row in ("small_plain", "small_tls", "large_plain", "large_tls", "large_tls_paced")
        for name in ("ours", "ranges")
        if name in found[row]
    )
    found["within_100_mb"] = found["peak_mb"] <= _MEMORY_MB
    return found


def _side_by_side(arguments: argparse.Namespace, certificate: str, size: str, *, pace: float = 0.0) -> dict[str, Any]:
    given = [sys.executable, "-m", "benchmarks.s3", "--small", str(arguments.small), "--large", str(arguments.large)]
    given += ["--objects", str(arguments.objects if size == "small" else 4), "--certificate", certificate]
    given += ["--pace", str(pace)]
    with subprocess.Popen([*given, "--contender", "server"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            best: dict[str, dict[str, Any]] = {}
            # In turns: another program's load falls on all of them.
            for _ in range(1 if pace else arguments.repeats):
                for name in CONTENDERS:
                    if name == "ranges" and size == "small":
                        continue
                    done = subprocess.run(
                        [*given, "--contender", f"{name}:{size}", "--url", url],
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                        timeout=_ATTEMPTS_SECONDS,
                    )
                    one = json.loads(done.stdout)
                    quickest = max(one["mb_per_second"], best.get(name, one)["mb_per_second"])
                    best[name] = min(best.get(name, one), one, key=lambda run: run["ms_per_object"])
                    best[name]["mb_per_second"] = quickest
        finally:
            server.kill()
    say(f"{size}, {'TLS' if certificate else 'plain'}{f', {pace} MB/s for each connection' if pace else ''}: {best}")
    return best


def contend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fetch some objects one way, and return what it cost."""
    name, _, size = arguments.contender.partition(":")
    count = getattr(arguments, size)
    # No other credentials, proxies or endpoints than these.
    os.environ.update(AWS_ACCESS_KEY_ID="AKID", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
    fetch = CONTENDERS[name](arguments.url, arguments.certificate, size, count)
    # Connections, and what is imported at the first request: a job opens as many once, whatever it fetches.
    fetch(_AHEAD if size == "small" else arguments.objects)
    began, clock = time.process_time(), time.perf_counter()
    fetch(arguments.objects)
    seconds, elapsed = time.process_time() - began, time.perf_counter() - clock
    return {
        "ms_per_object": round(seconds / arguments.objects * 1e3, 3),
        "mb_per_processor_second": round(count * arguments.objects / seconds / 1e6),
        "mb_per_second": round(count * arguments.objects / elapsed / 1e6),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def ours(url: str, certificate: str, size: str, count: int, *, together: int | None = None) -> Callable[[int], None]:
    """Read as the aggregation job does that has so many of them; None: all."""
    from fedgrass.cloud.aggregator.s3 import RoundUpdates
    from fedgrass.cloud.aggregator.sources import UpdateReference, open_ahead

    source = RoundUpdates(_client(url, certificate), "bucket", "fleet", 1)
    buffer = memoryview(bytearray(_BLOCK))

    def fetch(times: int) -> None:
        references = [UpdateReference("thing", size, count, etag="e") for _ in range(times)]
        for start in range(0, times, together or times):
            for _, opener in open_ahead(source, references[start : start + (together or times)]):
                with opener() as stream:
                    left = count
                    while left:
                        left -= stream.readinto(buffer)  # type: ignore[attr-defined]

    return fetch


def ranges(url: str, certificate: str, size: str, count: int) -> Callable[[int], None]:
    """Read one large object at a time as the aggregation job does: in ranges."""
    return ours(url, certificate, size, count, together=1)


def boto3(url: str, certificate: str, size: str, count: int) -> Callable[[int], None]:
    """Let boto3 fetch one after the other."""
    client = _client(url, certificate)
    buffer = memoryview(bytearray(_BLOCK))

    def fetch(times: int) -> None:
        for _ in range(times):
            body = client.get_object(Bucket="bucket", Key=size, IfMatch='"e"')["Body"]
            left = count
            while left:
                left -= body.readinto(buffer)
            body.close()

    return fetch


def _client(url: str, certificate: str) -> Any:
    import boto3 as library
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 8}, max_pool_connections=96)
    return library.client("s3", "eu-west-1", endpoint_url=url, verify=certificate or None, config=config)


def awscrt(url: str, certificate: str, size: str, count: int) -> Callable[[int], None]:
    """Let awscrt's S3 client fetch, as many at once as ours opens ahead, and large ones in ranges."""
    from awscrt import auth, http, io, s3

    loops = io.EventLoopGroup(os.cpu_count() or 1)
    bootstrap = io.ClientBootstrap(loops, io.DefaultHostResolver(loops))
    tls = None
    if certificate:
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(None, certificate)
        tls = io.ClientTlsContext(options).new_connection_options()
        tls.set_server_name("localhost")
    provider = auth.AwsCredentialsProvider.new_static("AKID", "secret")
    client = s3.S3Client(
        bootstrap=bootstrap,
        region="eu-west-1",
        signing_config=s3.create_default_s3_signing_config(region="eu-west-1", credential_provider=provider),
        tls_connection_options=tls,
        tls_mode=s3.S3RequestTlsMode.ENABLED if certificate else s3.S3RequestTlsMode.DISABLED,
    )
    headers = [("Host", url.partition("//")[2]), ("If-Match", '"e"')]

    def start() -> tuple[Any, list[int]]:
        got = [0]

        def body(chunk: bytes, **_: Any) -> None:
            got[0] += len(chunk)

        request = http.HttpRequest("GET", f"/bucket/{size}", http.HttpHeaders(headers))
        # As one request where there is nothing to divide: as GET_OBJECT it would ask for the size first.
        kind = (
            {"type": s3.S3RequestType.DEFAULT, "operation_name": "GetObject"}
            if size == "small"
            else {"type": s3.S3RequestType.GET_OBJECT}
        )
        return client.make_request(
            request=request, on_body=body, checksum_config=s3.S3ChecksumConfig(validate_response=True), **kind
        ), got

    def finish(under_way: tuple[Any, list[int]]) -> None:
        under_way[0].finished_future.result()
        if under_way[1][0] != count:
            raise SystemExit(f"awscrt: {under_way[1][0]} of {count} bytes")

    def fetch(times: int) -> None:
        waiting: deque[tuple[Any, list[int]]] = deque()
        for _ in range(times):
            waiting.append(start())
            if len(waiting) == (_AHEAD if size == "small" else 1):
                finish(waiting.popleft())
        for one in waiting:
            finish(one)

    return fetch


def floor(url: str, certificate: str, size: str, count: int) -> Callable[[int], None]:
    """Ask on a bare socket."""
    host, _, port = url.partition("//")[2].partition(":")
    stream = socket.create_connection((host, int(port)))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if certificate:
        stream = ssl.create_default_context(cafile=certificate).wrap_socket(stream, server_hostname=host)
    buffer = memoryview(bytearray(_BLOCK))
    asked = f"GET /bucket/{size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def fetch(times: int) -> None:
        for _ in range(times):
            stream.sendall(asked)
            head = b""
            while b"\r\n\r\n" not in head:
                head += stream.recv(1 << 14)
            left = count - (len(head) - head.index(b"\r\n\r\n") - 4)
            while left:
                left -= stream.recv_into(buffer, min(left, _BLOCK))

    return fetch


CONTENDERS: dict[str, Callable[[str, str, str, int], Callable[[int], None]]] = {
    "ours": ours,
    "ranges": ranges,
    "boto3": boto3,
    "awscrt": awscrt,
    "floor": floor,
}


def serve(arguments: argparse.Namespace) -> None:
    """Answer requests for objects until killed; the first line of standard output is where."""
    from awscrt.checksums import crc64nvme

    context = None
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{arguments.certificate}.key")
    block = os.urandom(_BLOCK)
    contents = {
        name: memoryview((block * (size // _BLOCK + 1))[:size])
        for name, size in (("small", arguments.small), ("large", arguments.large))
    }
    checksums = {
        name: base64.b64encode(crc64nvme(bytes(content)).to_bytes(8, "big")).decode()
        for name, content in contents.items()
    }
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"http{'s' if context else ''}://localhost:{listening.getsockname()[1]}", flush=True)
    while True:
        stream, _ = listening.accept()
        threading.Thread(
            target=_answer, args=(stream, context, contents, checksums, arguments.pace), daemon=True
        ).start()


def _answer(
    stream: Any,
    context: ssl.SSLContext | None,
    contents: dict[str, memoryview],
    checksums: dict[str, str],
    pace: float,
) -> None:
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            stream = context.wrap_socket(stream, server_side=True)
        lines = stream.makefile("rb", buffering=1 << 16)
        while line := lines.readline():
            span, summed = "", False
            while (header := lines.readline().strip().lower()) != b"":
                span = header.partition(b"=")[2].decode() if header.startswith(b"range:") else span
                summed = summed or header == b"x-amz-checksum-mode: enabled"
            method, path, _ = line.decode().split()
            name = path.partition("?")[0].rpartition("/")[2]
            content, size, status, more = contents[name], len(contents[name]), "200 OK", ""
            if span:
                first, _, last = span.partition("-")
                content = content[int(first) : int(last) + 1 if last else size]
                status = "206 Partial Content"
                more = f"Content-Range: bytes {first}-{int(first) + len(content) - 1}/{size}\r\n"
            elif summed:
                more = f"x-amz-checksum-crc64nvme: {checksums[name]}\r\nx-amz-checksum-type: FULL_OBJECT\r\n"
            stream.sendall(
                f"HTTP/1.1 {status}\r\nx-amz-id-2: {'i' * 76}\r\nx-amz-request-id: 0123456789ABCDEF\r\n"
                "Date: Mon, 30 Nov 2026 10:00:00 GMT\r\nLast-Modified: Mon, 30 Nov 2026 10:00:00 GMT\r\n"
                f'ETag: "e"\r\nx-amz-server-side-encryption: AES256\r\nx-amz-version-id: {"v" * 32}\r\n'
                f"Accept-Ranges: bytes\r\n{more}Content-Type: binary/octet-stream\r\nContent-Length: {len(content)}\r\n"
                "Server: AmazonS3\r\n\r\n".encode()
            )
            if method == "GET":
                _give(stream, content, pace)
    except OSError:
        pass  # a contender has ended
    finally:
        stream.close()


def _give(stream: Any, content: memoryview, pace: float) -> None:
    """Send it, at so many MB a second; 0: as they go."""
    if not pace:
        stream.sendall(content)
        return
    due = time.perf_counter()
    for start in range(0, len(content), _BLOCK // 4):
        block = content[start : start + _BLOCK // 4]
        stream.sendall(block)
        # A connection is no faster after a rest: made up for is only by how much a sleep was too long.
        due = max(due + len(block) / pace / 1e6, time.perf_counter() - 0.02)
        time.sleep(max(0.0, due - time.perf_counter()))


def make_certificate(folder: Path) -> str:
    """Write a certificate for localhost, and beside it ``.key``, one with its key; return its path."""
    from tests.fixtures.s3_server import make_certificate as make

    path = folder / "localhost.pem"
    whole = make(Path(f"{path}.key")).read_text()
    path.write_text(whole[whole.index("-----BEGIN CERTIFICATE") :])
    return str(path)


if __name__ == "__main__":
    main()
