"""An upload that waits for credentials says so, and for how long; asked as the AWS SDKs ask."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from fedgrass.edge.credentials import CredentialsWatch, refusal
from fedgrass.local.core_device.credentials import Credentials, TokenExchangeService
from fedgrass.logs import Log


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
