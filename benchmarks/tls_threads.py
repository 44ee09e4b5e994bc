"""Whether threads of one interpreter decrypt TLS side by side.

``python -m benchmarks.tls_threads`` lays in memory what a connection brings, for each thread, and has one thread, two, and so
on to as many as there are processors read theirs. So no server and no network take a part of the same processors; reading from
a socket comes on top. Of several runs the quickest counts. Needs the extra ``edge`` (for the certificate).
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from benchmarks.s3 import make_certificate

_BLOCK = 1 << 20


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=64, help="MiB for each thread")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
        certificate = make_certificate(Path(folder))
        counts = range(1, (os.cpu_count() or 1) + 1)
        rates: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
        # In turns: another program's load falls on all of them.
        for _ in range(arguments.repeats):
            for count in counts:
                rates[count].append(measured(certificate, count, arguments.mib))
    found = {
        count: {
            "mb_per_second": round(max(rate for rate, _ in some)),
            "mb_per_processor_second": round(max(rate for _, rate in some)),
        }
        for count, some in rates.items()
    }
    times = round(found[len(counts)]["mb_per_second"] / found[1]["mb_per_second"], 2)
    print(json.dumps({"benchmark": "tls_threads", "threads": found, "times_one_thread": times}))


def measured(certificate: str, threads: int, mib: int) -> tuple[float, float]:
    """Return MB a second, and MB per second of a processor."""
    connections = [_filled(certificate, mib) for _ in range(threads)]
    begin = threading.Barrier(threads + 1)
    with ThreadPoolExecutor(threads) as pool:
        reading = [pool.submit(_read, connection, mib, begin) for connection in connections]
        begin.wait()
        clock, processor = time.perf_counter(), time.process_time()
        for one in reading:
            one.result()
        elapsed, seconds = time.perf_counter() - clock, time.process_time() - processor
    megabytes = threads * mib * _BLOCK / 1e6
    return megabytes / elapsed, megabytes / seconds


def _filled(certificate: str, mib: int) -> ssl.SSLObject:
    """Return a client's end of a connection on which so many bytes lie."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = ssl.create_default_context(cafile=certificate).wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):  # flights of a handshake, and to spare
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    block = os.urandom(_BLOCK)
    for _ in range(mib):
        server.write(block)
    return client


def _read(connection: ssl.SSLObject, mib: int, begin: threading.Barrier) -> None:
    buffer, left = bytearray(_BLOCK), mib * _BLOCK
    begin.wait()
    while left:
        left -= connection.read(min(left, _BLOCK), buffer)  # type: ignore[operator] # a count, as there is a buffer


if __name__ == "__main__":
    main()
