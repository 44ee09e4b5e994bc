"""Fixtures of the core device's tests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fedgrass.local.core_device.harness import DeviceProcess, Fleet
from tests.fixtures.local_aws import local_aws, unique
from tests.fixtures.waiting import PATIENCE

__all__ = ["device", "fleet", "local_aws", "loop", "own_device", "unique"]

_T = TypeVar("_T")


class Loop:
    """An event loop in a separate thread, so that blocking clients can be tested against servers in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Awaitable[_T], timeout: float = PATIENCE) -> _T:
        """Run a coroutine in the loop and return its result."""

        async def awaited() -> _T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(timeout)

    def begin(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Begin a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function in the loop and return its result."""

        async def called() -> _T:
            return function(*arguments)

        return self.run(called())

    def close(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(scope="module")
def fleet(local_aws: LocalAwsProcess) -> Fleet:
    return Fleet(local_aws)


@pytest.fixture(scope="module")
def device(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceProcess]:
    """A started device that the tests of a module share; each deploys its own components over the last one's."""
    with _started(fleet, tmp_path_factory.mktemp("device") / "root") as started:
        yield started


@pytest.fixture
def own_device(local_aws: LocalAwsProcess, tmp_path: Path) -> Iterator[DeviceProcess]:
    """A started device for a test that stops or kills it, alone in its fleet."""
    with _started(Fleet(local_aws), tmp_path / "root") as started:
        yield started


def _started(fleet: Fleet, root: Path) -> DeviceProcess:
    thing = fleet.name.replace("fleet", "thing")
    fleet.add(thing)
    return DeviceProcess(fleet, root, thing)
