"""A component's child: it answers by its pipe alone, and never outlives the component."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedgrass.edge.child import Child
from tests.fixtures.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[3]
CHILD = "tests.fixtures.child"
FRESH = f"""
import os, sys, time
from fedgrass.edge.child import Child
child = Child({CHILD!r}, str(os.getpid()), "hang", sys.argv[1])
time.sleep(3600)
"""
FORKED = """
import sys, time
from fedgrass.edge.child import ForkedChild
from tests.fixtures.child import do
child = ForkedChild(lambda parent: do(parent, "hang", sys.argv[1]))
time.sleep(3600)
"""


def everything(child: Child) -> bytes:
    found = b""
    while (some := child.read(PATIENCE)) != b"":
        found += some or b""
    return found


def test_what_a_child_prints_is_not_taken_for_its_answer(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child(CHILD, str(os.getpid()), "echo")
    assert child.tell(b"a line\n")
    assert everything(child) == b"a line\n"
    assert child.died_of() == ""
    assert "printed" in capfd.readouterr().out


@pytest.mark.parametrize("length", [4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20])
def test_a_line_of_any_length_arrives_whole_and_before_the_next(length: int) -> None:
    child = Child(CHILD, str(os.getpid()), "echo")
    line = bytes(range(97, 123)) * (length // 26) + b"z" * (length % 26 - 1) + b"\n"
    assert child.tell(line)
    # Taken now, if all of the first is in the pipe, or else not at all: never in its middle.
    child.tell(b"another\n")
    assert everything(child) == line
    assert child.died_of() == ""


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("SIGSEGV", "by signal 11 (SIGSEGV)"),
        ("SIGKILL", "by signal 9 (SIGKILL)"),
        ("exit", "with exit code 3"),
        ("memory", "as there was no more memory"),
    ],
)
def test_what_a_child_died_of_is_said(what: str, cause: str) -> None:
    child = Child(CHILD, str(os.getpid()), what)
    assert everything(child) == b""
    assert child.died_of() == cause


@pytest.mark.parametrize("started", [FRESH, FORKED])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_component_whatever_that_ends_of(tmp_path: Path, number: int, started: str) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", started, str(told)], cwd=ROOT)
    pid = int(eventually(lambda: told.exists() and told.read_text(), "started"))
    parent.send_signal(number)
    parent.wait(PATIENCE)
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "gone")


def test_a_child_that_hangs_takes_lines_until_its_pipe_is_full_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    child = Child(CHILD, str(os.getpid()), "hang", str(tmp_path / "pid"))
    eventually((tmp_path / "pid").exists, "started")
    os.kill(child.pid, signal.SIGTERM)
    assert any(not child.tell(b"x" * 1000) for _ in range(1000))
    assert child.read(0.01) is None
    assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) >= 500
    child.kill()
    assert everything(child) == b""
    assert child.died_of() == "by signal 9 (SIGKILL)"


def forked(length: int, *words: str) -> tuple[str, str, str]:
    """Return the answer of a forked child to a line of that length, what it died of, and what its parent printed else."""
    command = [sys.executable, "-m", "tests.fixtures.forking", str(length), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    *printed, last = done.stdout.splitlines()
    answered, cause, again = json.loads(last.removeprefix("buffered "))
    assert (done.returncode, done.stderr, again) == (0, "", cause)
    return answered, cause, "\n".join([*printed, last.partition("[")[0]])


@pytest.mark.parametrize("length", [65_536, 65_537, 1 << 20])
def test_a_fork_takes_a_line_and_answers_as_a_fresh_child_does(length: int) -> None:
    answered, cause, printed = forked(length, "echo")
    assert (answered, cause) == ("a" * (length - 1) + "\n", "")
    # What the child prints goes to the parent's output, and what was written before the fork is there once.
    assert sorted(printed.split()) == ["buffered", "printed"]


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("SIGSEGV", "by signal 11 (SIGSEGV)"),
        ("SIGKILL", "by signal 9 (SIGKILL)"),
        ("exit", "with exit code 3"),
        ("raise", "with exit code 1"),
        ("memory", "as there was no more memory"),
    ],
)
def test_what_a_fork_died_of_is_said(what: str, cause: str) -> None:
    answered, found, printed = forked(1, what)
    assert (answered, found) == ("", cause)
    assert ("ZeroDivisionError: of the child" in printed) == (what == "raise")


def test_a_fork_that_is_told_nothing_ends_when_its_orders_do() -> None:
    assert forked(0, "echo")[:2] == ("", "")
