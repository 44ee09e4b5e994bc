"""The container of an endpoint as a process: SageMaker's contract, over HTTP."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.checkout import checkout
from fedgrass.cloud.serving.model import ServedModel
from fedgrass.cloud.serving.server import MAX_BODY
from tests.fixtures.waiting import PATIENCE, eventually

pytestmark = pytest.mark.xdist_group("served model")  # which one container serves

BUNDLE = checkout() / "examples/digits/bundle"


LOG = "container.log"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def container(folder: Path, bundle: Path = BUNDLE) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start what SageMaker starts: the image's entry point with ``serve``."""
    (folder / "ml").mkdir()
    (folder / "ml/model").symlink_to(bundle)
    port = free_port()
    own = {
        "FEDGRASS_ML_ROOT": str(folder / "ml"),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "FEDGRASS_SERVING_HOST": "127.0.0.1",
    }
    command = [sys.executable, "-m", "fedgrass.cloud.aggregator", "serve"]
    # To a file: a pipe that nobody reads is full after some hundred refusals, and the server waits for it.
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("served")
    with container(folder) as (process, port):

        def up() -> bool:
            assert process.poll() is None, (folder / LOG).read_text()
            try:
                return request(port, "GET", "/ping")[0] == 200
            except OSError:
                return False

        eventually(up)
        yield port
        process.terminate()
        assert process.wait(PATIENCE) == 0


def request(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def some(count: int) -> Any:
    return np.random.default_rng(7).random((count, 8, 8, 1), np.float32)


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_every_form_gets_the_model_s_own_outputs(port: int) -> None:
    x = some(3)
    expected = ServedModel(BUNDLE).predict(x)
    assert json.loads(request(port, "GET", "/ping")[2])["version"] == Bundle.open(BUNDLE).manifest.version
    status, _, body = request(port, "POST", "/invocations", npy(x), Content_Type="application/x-npy")
    assert status == 200
    assert np.array_equal(np.load(io.BytesIO(body)), expected)
    given = json.dumps({"instances": x.tolist()}).encode()
    status, headers, body = request(port, "POST", "/invocations", given, Content_Type="application/json; charset=utf-8")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert np.allclose(json.loads(body)["predictions"], expected)
    rows = "".join(",".join(map(repr, row)) + "\n" for row in x.reshape(3, -1).tolist()).encode()
    status, headers, body = request(
        port, "POST", "/invocations", rows, Content_Type="text/csv", Accept="application/x-npy"
    )
    assert (status, headers["Content-Type"]) == (200, "application/x-npy")
    assert np.array_equal(np.load(io.BytesIO(body)), expected)


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "headers"),
    [
        (404, "GET", "/", None, {}),
        (404, "POST", "/ping", b"", {"Content_Type": "text/csv"}),
        (415, "POST", "/invocations", b"x", {}),
        (415, "POST", "/invocations", b"x", {"Content_Type": "application/x-pickle"}),
        (406, "POST", "/invocations", b"x", {"Content_Type": "text/csv", "Accept": "image/png"}),
        (413, "POST", "/invocations", b"x", {"Content_Type": "text/csv", "Content_Length": str(MAX_BODY + 1)}),
        (413, "POST", "/invocations", b"x", {"Content_Type": "text/csv", "Content_Length": "9" * 5000}),
        (411, "POST", "/invocations", b"x", {"Content_Type": "text/csv", "Content_Length": "-1"}),
        (
            411,
            "POST",
            "/invocations",
            b"1\r\nx\r\n0\r\n\r\n",
            {"Content_Type": "text/csv", "Transfer_Encoding": "chunked"},
        ),
        (400, "POST", "/invocations", b"1,2\n", {"Content_Type": "text/csv"}),
        (400, "POST", "/invocations", b"{}", {"Content_Type": "application/json"}),
        (400, "POST", "/invocations", b"x", {"Content_Type": "application/x-npy"}),
        (501, "DELETE", "/invocations", None, {}),
    ],
)
def test_what_cannot_be_answered_gets_a_status_and_words(
    port: int, status: int, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    found, _, said = request(port, method, path, body, **headers)
    assert found == status
    if status != 501:
        assert json.loads(said)["error"]
    assert request(port, "GET", "/ping")[0] == 200


def test_half_a_body_and_many_that_wait_leave_room_for_nobody_else_to_harm(port: int) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 100\r\n\r\n1,2"
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for connection in waiting:
        connection.sendall(head)
    body, csv = b"1\n", {"Content_Type": "text/csv"}
    eventually(lambda: request(port, "POST", "/invocations", body, **csv)[0] == 503)
    assert request(port, "GET", "/ping")[0] == 200
    waiting[0].shutdown(socket.SHUT_WR)
    assert b"100 bytes were announced, 3 came" in _all(waiting[0])
    for connection in waiting:
        connection.close()
    eventually(lambda: request(port, "POST", "/invocations", body, **csv)[0] == 400)


def _all(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE)
    content = b""
    while piece := connection.recv(4096):
        content += piece
    return content


def test_a_container_without_a_model_to_serve_ends_with_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with container(tmp_path, tmp_path / "empty") as (process, _):
        assert process.wait(PATIENCE) == 2
        assert "a model bundle?" in (tmp_path / LOG).read_text()


def test_requests_side_by_side_get_their_own_answers(port: int) -> None:
    x = some(6)
    expected = ServedModel(BUNDLE).predict(x)

    def ask(index: int) -> Any:
        for _ in range(1000):
            status, _, body = request(port, "POST", "/invocations", npy(x[index]), Content_Type="application/x-npy")
            if status == 200:
                return np.load(io.BytesIO(body))[0]
            time.sleep(0.01)
        raise AssertionError("no answer")

    with ThreadPoolExecutor(6) as pool:
        assert np.array_equal(np.stack(list(pool.map(ask, range(6)))), expected)
