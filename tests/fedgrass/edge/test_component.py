"""How a component runs: its loop, its log, its resources, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedgrass import logs
from fedgrass.bundle import Bundle
from fedgrass.edge.backoff import Backoff
from fedgrass.edge.loop import Loop
from fedgrass.engines.registry import open_engine
from fedgrass.errors import EngineError
from fedgrass.local.core_device.configuration import ConfigurationStore
from fedgrass.local.core_device.ipc.configuration import ConfigurationService
from fedgrass.local.core_device.ipc.server import IpcServer
from fedgrass.logs import Log
from fedgrass.protocol.message import as_reason
from tests.components.trainer.engine import QuickEngine
from tests.fedgrass.edge import digits
from tests.fedgrass.local.core_device.conftest import Loop as ServerLoop
from tests.fixtures.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[3]


def test_what_is_posted_from_any_thread_is_done_in_order_on_the_loops_thread() -> None:
    loop, done = Loop(), []
    names = set()

    def act(number: int) -> None:
        done.append(number)
        names.add(threading.current_thread().name)

    def post() -> None:
        for number in range(100):
            loop.post(partial(act, number))

    poster = threading.Thread(target=post)
    poster.start()
    poster.join()
    loop.stop(7)
    loop.stop(9)
    assert loop.run() == 7
    assert done == list(range(100))
    assert names == {threading.current_thread().name}


def test_timers_come_when_due_in_the_order_of_their_time() -> None:
    now, seen = [0.0], []
    loop = Loop(lambda: now[0])
    loop.later(2, lambda: seen.append("two"))
    loop.later(1, lambda: seen.append("one"))
    loop.every(lambda: 5, lambda: seen.append("again"))
    for now[0] in (0.5, 2.5, 5.0, 9.9, 10.1):
        while loop.step():
            pass
    assert seen == ["one", "two", "again", "again"]


def test_a_waiting_loop_wakes_for_a_timer_and_for_a_post() -> None:
    loop, seen = Loop(), []
    loop.later(0.01, lambda: seen.append("timer"))

    def act() -> None:
        seen.append("post")
        loop.stop()

    threading.Timer(0.05, lambda: loop.post(act)).start()
    assert loop.run() == 0
    assert seen == ["timer", "post"]


def test_pauses_double_up_to_a_bound_and_start_over_after_a_success() -> None:
    backoff = Backoff(first=1, most=8)
    pauses = [backoff.failed() for _ in range(100)]
    for pause, longest in zip(pauses, [1, 2, 4, 8, 8], strict=False):
        assert longest / 2 <= pause <= longest
    assert max(pauses) <= 8
    backoff.succeeded()
    assert backoff.failed() <= 1


def test_a_log_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    log = Log("name", thing="t").bind(fleet="f")
    log.log_event("trained", round=3)
    for _ in range(3):
        log.log_event("announcement_ignored", reason="stale")
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first.items() >= {"event": "trained", "thing": "t", "fleet": "f", "round": 3, "level": "info"}.items()
    assert second["event"] == "announcement_ignored"


def test_a_reason_can_always_be_sent() -> None:
    assert as_reason("/data/\udcff.npz") == "/data/?.npz"
    assert len(as_reason("x" * 1000)) == 500


def test_engines_are_found_by_name() -> None:
    bundle = Bundle.open(digits.BUNDLE)
    assert isinstance(open_engine("tests.components.trainer.engine:QuickEngine", bundle), QuickEngine)
    for name in ("magic", "no.such.module:Engine", "fedgrass.bundle:Nothing"):
        with pytest.raises(EngineError, match=name):
            open_engine(name, bundle)


@pytest.fixture
def loop() -> Iterator[ServerLoop]:
    running = ServerLoop()
    yield running
    running.close()


def start(work: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "components.heartbeat", "--work", str(work), "--store", str(work)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_without_a_nucleus_a_component_asks_to_be_relaunched(tmp_path: Path) -> None:
    child = start(tmp_path, AWS_IOT_THING_NAME="t")
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 75, output
    assert "SVCUID" in output


@pytest.mark.parametrize(("configuration", "code"), [({"fleet": "no such name"}, 78), ({"fleet": "f"}, 0)])
def test_a_wrong_configuration_and_a_stop_have_their_own_exit_codes(
    tmp_path: Path, loop: ServerLoop, configuration: dict[str, str], code: int
) -> None:
    store = ConfigurationStore(tmp_path / "configuration.json")
    store.merge("com.fedgrass.Runtime", configuration, 1.0)
    store.merge("com.fedgrass.Heartbeat", {"intervalSeconds": "30"}, 1.0)
    server = IpcServer(
        tmp_path / "s", {"token": "com.fedgrass.Heartbeat"}.get, ConfigurationService(store).operations()
    )
    loop.run(server.start())
    child = start(
        tmp_path / "work",
        AWS_IOT_THING_NAME="t",
        SVCUID="token",
        AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT=str(tmp_path / "s"),
    )
    try:
        if code == 0:
            assert child.stdout is not None
            eventually(lambda: '"component_started"' in child.stdout.readline())  # type: ignore[union-attr]
            child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=PATIENCE)
        assert child.returncode == code, output
        if code:
            assert "fleet" in output
    finally:
        child.kill()
        child.wait()
        loop.run(server.stop())


INSTALLED = """
import sys
from pathlib import Path
from fedgrass.edge import component, library
installed = Path(sys.argv.pop())
library.present = installed.read_text
sys.orig_argv = [sys.executable, "-c", "import os; print('again', os.getpid(), len(os.listdir('/proc/self/fd')))"]
from components.heartbeat.__main__ import start
component.main("components.heartbeat", "", start)
"""


class Runs:
    """A heartbeat as a process, whose library a test can replace."""

    def __init__(self, folder: Path, loop: ServerLoop) -> None:
        self.work = folder / "com.fedgrass.Heartbeat"
        self._library = folder / "library"
        self._library.write_text("one")
        store = ConfigurationStore(folder / "configuration.json")
        store.merge("com.fedgrass.Runtime", {"fleet": "f"}, 1.0)
        store.merge("com.fedgrass.Heartbeat", {"intervalSeconds": "30"}, 1.0)
        self._loop = loop
        operations = ConfigurationService(store).operations()
        self._server = IpcServer(folder / "s", {"token": "com.fedgrass.Heartbeat"}.get, operations)
        loop.run(self._server.start())
        self.child = subprocess.Popen(
            [sys.executable, "-c", INSTALLED, "--work", str(self.work), "--store", str(folder), str(self._library)],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "AWS_IOT_THING_NAME": "t",
                "SVCUID": "token",
                "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(folder / "s"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def upgraded(self) -> str:
        """Replace the library once the component has started; returns what it wrote until its end."""
        assert self.child.stdout is not None
        stdout = self.child.stdout
        eventually(lambda: '"component_started"' in stdout.readline())
        self._library.write_text("two")
        return self.child.communicate(timeout=PATIENCE)[0]

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self._loop.run(self._server.stop())


def test_a_component_leaves_when_the_runtimes_library_is_another(tmp_path: Path, loop: ServerLoop) -> None:
    runs = Runs(tmp_path, loop)
    try:
        output = runs.upgraded()
        assert runs.child.returncode == 75, output
        assert '"library_changed"' in output
    finally:
        runs.close()


def test_a_component_that_has_used_up_its_starts_begins_anew_in_its_own_place(tmp_path: Path, loop: ServerLoop) -> None:
    work = tmp_path / "com.fedgrass.Heartbeat"
    work.mkdir()
    (work / "starts.json").write_text(json.dumps([time.time() - 60, time.time() - 30]))
    runs = Runs(tmp_path, loop)
    try:
        output = runs.upgraded()
        # The standard ones and the folder's own: a connection that stayed open would be waited for by the nucleus.
        assert f"again {runs.child.pid} 4" in output
        assert runs.child.returncode == 0
    finally:
        runs.close()
