"""An upload that waits for credentials says so, and for how long; asked as the AWS SDKs ask."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from fedgrass.edge.credentials import CredentialsWatch, find_service, refusal
from fedgrass.local.core_device.credentials import Credentials, TokenExchangeService
from fedgrass.logs import Log
from tests.fedgrass.edge.fakes import FakeIpc
from tests.fixtures.waiting import PATIENCE


class Service:
    """The stand-in's token exchange service, on a thread of its own; ``linked`` is whether AWS can be reached."""

    def __init__(self) -> None:
        self.linked = True
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = TokenExchangeService(self._credentials, lambda token: "t" if token == "right" else None)
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(30)

    def _credentials(self) -> Credentials:
        if not self.linked:
            raise OSError("no route to host")
        return Credentials("key", "secret", "token", datetime.now(timezone.utc))

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", made.server.url)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "right")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    yield made
    made.stop()


def test_credentials_are_there_or_the_service_says_why_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal() == ""
    service.linked = False
    assert refusal() == "the token exchange service answers 500"
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong")
    assert refusal() == "the token exchange service answers 403"


def test_a_service_that_is_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert refusal().startswith("the token exchange service does not answer (")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "no address")
    assert refusal().startswith("the token exchange service does not answer (")


def test_without_a_nucleus_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", raising=False)
    assert refusal() == ""


class Configured(FakeIpc):
    """A nucleus whose service says one port after the other, and the last for ever."""

    def __init__(self, *ports: object) -> None:
        super().__init__()
        self.ports = list(ports)

    def get_configuration(self, component: str) -> dict[str, Any]:
        assert component == "aws.greengrass.TokenExchangeService"
        return {"activePort": self.ports.pop(0) if len(self.ports) > 1 else self.ports[0]}


def test_a_component_that_started_before_the_service_finds_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
        for before in ([], [0], [closed], [0, closed, float(closed)]):
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://localhost:{closed}/of/the/boot/before")
            find_service(Configured(*before, service.server.port), patience=PATIENCE)
            assert refusal() == ""
            monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
            find_service(Configured(*before, service.server.port), patience=PATIENCE)
            assert os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"].endswith("/2016-11-01/credentialprovider/")
            assert refusal() == ""


@pytest.mark.parametrize("port", [None, "8080", [], True, 0, -1, 65536, 1e300, float("nan")])
def test_without_a_port_that_is_one_the_environment_stays(port: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://localhost:1/nucleus/lite")
    find_service(Configured(port), patience=0)
    assert os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == "http://localhost:1/nucleus/lite"


def test_it_says_for_how_long_and_asks_less_and_less_often() -> None:
    now, asked = [100.0], 0
    troubles: list[str] = []
    log = Log("test")
    log.on_trouble(troubles.append)

    def ask() -> str:
        nonlocal asked
        asked += 1
        return "" if now[0] > 1000 else "the token exchange service answers 500"

    watch = CredentialsWatch(log, ask=ask, clock=lambda: now[0])
    watch.look(9.9)
    assert asked == 0
    for second in range(10, 610):
        now[0] = 100.0 + second
        watch.look(float(second))
    assert asked < 20
    assert troubles[0] == "upload waiting: no credentials for 10 s (the token exchange service answers 500)"
    seconds = [int(trouble.split()[5]) for trouble in troubles]
    assert seconds == sorted(seconds)
    assert 480 < seconds[-1] < 610
    now[0] = 1001.0
    watch.look(900.0)
    assert len(troubles) == len(seconds)


@pytest.mark.parametrize("later", ["", "upload failed: 403"])
def test_it_is_no_trouble_any_more_once_something_is_heard_of_the_upload(later: str) -> None:
    log = Log("test")
    watch = CredentialsWatch(log, ask=lambda: "the token exchange service answers 500", clock=lambda: 100.0)
    watch.look(20.0)
    assert log.last_error.startswith("upload waiting: no credentials for 20 s")
    if later:
        log.trouble(later)
    watch.look(0.0)
    assert log.last_error == later
