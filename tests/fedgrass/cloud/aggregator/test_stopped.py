"""StopProcessingJob sends SIGTERM to a container's first process: here a real one, of a PID namespace of its own.

The kernel drops signals to such a process that it has no handler for, and Python has none for SIGTERM. Where the machine gives
no namespace, the processes are ordinary ones.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[3]
STOPPED = 143


@cache
def namespace() -> list[str]:
    """The command before a command that makes its process the first of a namespace; empty where that is not allowed."""
    for flags in (["--pid"], ["--user", "--map-root-user", "--pid"]):
        argv = ["unshare", *flags, "--fork", "--kill-child"]
        try:
            if subprocess.run([*argv, "true"], capture_output=True, timeout=PATIENCE, check=False).returncode == 0:
                return argv
        except OSError:
            break
    return []


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start Python as such a process; yields it, and its number out here."""
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    argv = [*namespace(), sys.executable, *arguments]
    with subprocess.Popen(argv, env=given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        try:
            yield started, _first(started) if namespace() else started.pid
        finally:
            started.kill()


def _first(outer: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    return int(eventually(lambda: children.read_text().split(), "the namespace's first process")[0])


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def test_a_job_that_waits_for_aws_ends_when_it_is_stopped(silent: socket.socket, tmp_path: Path) -> None:
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "FEDGRASS_ML_ROOT": str(tmp_path),
        "FEDGRASS_FLEET": "mill",
        "FEDGRASS_ROUND": "3",
        "FEDGRASS_BUCKET": "fedgrass-mill",
        "FEDGRASS_ROUNDS_TABLE": "rounds",
        "FEDGRASS_DEVICES_TABLE": "devices",
        "FEDGRASS_THING_GROUP_ARN": "arn:aws:iot:us-east-1:123456789012:thinggroup/mill",
    }
    with process("-m", "fedgrass.cloud.aggregator", **environment) as (job, number):
        connection, _ = silent.accept()  # it reads the round's record
        with connection:
            os.kill(number, signal.SIGTERM)
            assert job.wait(PATIENCE) == STOPPED


def test_what_cannot_be_unwound_does_not_keep_a_stopped_job() -> None:
    code = """
        import threading, time
        import fedgrass.cloud.aggregator.__main__ as job
        job._UNWIND_SECONDS = 1
        job.obey_stop()
        threading.Thread(target=time.sleep, args=(10_000,)).start()
        print("up", flush=True)
        time.sleep(10_000)
    """
    with process("-c", textwrap.dedent(code)) as (job, number):
        assert job.stdout is not None
        assert job.stdout.readline() == b"up\n"
        os.kill(number, signal.SIGTERM)
        assert job.wait(PATIENCE) == STOPPED


def test_python_alone_ignores_it_as_a_first_process() -> None:
    if not namespace():
        pytest.skip("this machine gives no PID namespace")
    # Whoever started these tests may have SIGINT ignored, and Python would ignore it then.
    # Short sleeps: a signal that arrives just before one of them is looked at after it.
    code = (
        "import signal, time\nsignal.signal(2, signal.default_int_handler); print('up', flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    with process("-c", code) as (job, number):
        assert job.stdout is not None
        assert job.stderr is not None
        assert job.stdout.readline() == b"up\n"
        os.kill(number, signal.SIGTERM)
        os.kill(number, signal.SIGINT)  # for this one Python has a handler
        assert job.wait(PATIENCE) != STOPPED
        assert b"KeyboardInterrupt" in job.stderr.read()
