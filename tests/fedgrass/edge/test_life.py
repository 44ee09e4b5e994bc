"""What a component leaves for the heartbeat, and what can be seen of it from beside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fedgrass.edge.life import STARTS_AN_HOUR, Life, Seen, seen
from fedgrass.edge.systemd import Unit, read_unit
from tests.fixtures.waiting import eventually

LIVES = """
import sys, time
from pathlib import Path
from fedgrass.edge.life import Life
life = Life(Path(sys.argv[1]))
print("lives", flush=True)
if len(sys.argv) > 2:
    life.ends(int(sys.argv[2]))
else:
    time.sleep(1000)
"""


def live(work: Path, *arguments: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(work), *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "lives\n"
    return child


def test_a_process_is_seen_for_as_long_as_it_lives_and_not_once_it_was_killed(tmp_path: Path) -> None:
    assert seen(tmp_path) is None
    child = live(tmp_path)
    assert seen(tmp_path) == Seen(True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    eventually(lambda: seen(tmp_path) == Seen(False), "death seen")


def test_an_end_of_its_own_is_told_with_its_code_and_forgotten_at_the_next_start(tmp_path: Path) -> None:
    live(tmp_path, "75").wait()
    assert seen(tmp_path) == Seen(False, 75)
    live(tmp_path, "0").wait()
    assert seen(tmp_path) == Seen(False, 0)
    child = live(tmp_path)
    child.kill()
    child.wait()
    assert seen(tmp_path) == Seen(False)


def test_starts_are_counted_over_an_hour_and_the_last_one_may_not_leave(tmp_path: Path) -> None:
    now = [1e9]
    for number in range(1, STARTS_AN_HOUR + 1):
        life = Life(tmp_path, lambda: now[0])
        assert (life.starts, life.may_leave) == (number, number < STARTS_AN_HOUR)
        life._file.close()
        now[0] += 60
    now[0] += 3600
    assert Life(tmp_path, lambda: now[0]).starts == 1


def test_a_clock_that_went_back_and_a_damaged_file_count_nothing(tmp_path: Path) -> None:
    (tmp_path / "starts.json").write_text("[99999999999, 5]")
    life = Life(tmp_path, lambda: 1000.0)
    assert life.starts == 2
    life._file.close()
    for content in ("no JSON", "{}", '["x"]', "5"):
        (tmp_path / "starts.json").write_text(content)
        life = Life(tmp_path)
        assert life.starts == 1
        life._file.close()


def test_a_unit_is_read_as_systemd_shows_it() -> None:
    given_up = """LoadState=loaded
ActiveState=failed
SubState=failed
Result=signal
ExecMainCode=2
ExecMainStatus=9
"""
    assert read_unit(given_up) == Unit(True, "signal 9 (SIGKILL)")
    assert read_unit(given_up.replace("failed", "activating").replace("=9", "=11")) == Unit(
        False, "signal 11 (SIGSEGV)"
    )
    exited = given_up.replace("Code=2", "Code=1").replace("Status=9", "Status=75")
    assert read_unit(exited) == Unit(True, "exit code 75")
    # As systemd 252 said it of a process that left by itself, when one that it had started was killed for memory.
    out_of_memory = exited.replace("Result=signal", "Result=oom-kill").replace("Status=75", "Status=0")
    assert read_unit(out_of_memory) == Unit(True, "memory")
    assert read_unit("LoadState=not-found\nActiveState=inactive\n") is None
    assert read_unit("") is None
