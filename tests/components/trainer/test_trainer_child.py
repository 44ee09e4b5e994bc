"""The trainer's work in separate processes: whatever kills one, the component lives and says what it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from components.trainer import runner
from fedgrass.edge.child import Child, Running
from fedgrass.protocol.messages import Command, FitTask, Reply
from fedgrass.protocol.names import RUNTIME, device_topic, update_key
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, QUICK, THING, Place
from tests.fixtures.waiting import eventually

KEY = update_key(FLEET, 1, THING)
DEADLY = "tests.components.trainer.deadly"
CHILD = "tests.fixtures.child"


class PlaceWithChildren(Place):
    """A device whose trainer's work is done in processes, as on a device."""

    started: list[Child]

    def start_child(self) -> Running:
        child = Child("components.trainer.work", str(os.getpid()))
        self.started.append(child)
        return child

    def use(self, engine: str) -> None:
        """Change the engine of rounds to come."""
        self.ipc.change(RUNTIME, {**self.ipc.configurations[RUNTIME], "engine": engine})


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PlaceWithChildren]:
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.01)
    monkeypatch.setattr(runner, "_STOP_SECONDS", 0.3)

    def made(engine: str) -> PlaceWithChildren:
        QuickEngine.reset()
        place = PlaceWithChildren(tmp_path, engine=engine)
        place.started = []
        place.have_model()
        place.start()
        return place

    return made


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        ("Segfault", "by signal 11 (SIGSEGV)"),
        ("Hungry", "as there was no more memory"),
    ],
)
def test_a_round_that_kills_who_trains_is_declined_at_the_second_death_and_the_next_is_taken(
    make: Callable[[str], PlaceWithChildren], engine: str, cause: str
) -> None:
    place = make(f"{DEADLY}:{engine}")
    place.open(place.announcement(1))
    place.settle()
    [notice] = place.notices
    assert notice.status == "declined"
    assert f"died twice in training, last {cause}" in notice.reason
    assert cause in place.until(lambda: place.statuses[-1].last_error, "told")
    place.use(QUICK)
    place.open(place.announcement(2))
    place.settle()
    place.stop()
    assert [(one.round, one.status) for one in place.notices] == [(1, "declined"), (2, "uploaded")]


def test_one_death_is_made_up_for_from_the_checkpoint_to_the_same_update(
    make: Callable[[str], PlaceWithChildren], tmp_path: Path
) -> None:
    place = make(f"{DEADLY}:DiesOnce")
    place.open(place.announcement(epochs=4))
    place.settle()
    place.stop()
    (tmp_path / "unbroken").mkdir()
    other = Place(tmp_path / "unbroken")
    other.have_model()
    other.start()
    other.open(other.announcement(epochs=4))
    other.settle()
    other.stop()
    assert [notice.status for notice in place.notices] == ["uploaded"]
    assert place.streams.s3[KEY] == other.streams.s3[KEY]
    assert [s.epoch for s in place.statuses if s.state == "training"][-1] == 4


def test_the_real_engine_gives_the_same_bytes_in_a_process_of_its_own(
    make: Callable[[str], PlaceWithChildren], tmp_path: Path
) -> None:
    place = make("litert")
    place.open(place.announcement(epochs=2))
    place.settle()
    eventually(lambda: not any(psutil.pid_exists(child.pid) for child in place.started), "no child is left")
    place.stop()
    (tmp_path / "here").mkdir()
    here = Place(tmp_path / "here", engine="litert")
    here.have_model()
    here.start()
    here.open(here.announcement(epochs=2))
    here.settle()
    here.stop()
    assert place.streams.s3[KEY] == here.streams.s3[KEY]


def test_a_batch_that_takes_too_long_is_ended_with_the_component_and_is_no_death(
    make: Callable[[str], PlaceWithChildren],
) -> None:
    place = make(f"{DEADLY}:Hangs")
    place.open(place.announcement())
    for _ in range(2):
        place.until(lambda: place.statuses[-1].state == "training", "training")
        os.kill(
            place.started[-1].pid, signal.SIGTERM
        )  # as reaches all processes of a component: the child is told otherwise
        place.stop()
        assert not psutil.pid_exists(place.started[-1].pid)
        place.statuses.clear()
        place.ipc.local.clear()
        place.start()
    place.until(lambda: place.statuses and place.statuses[-1].state == "training", "training")
    place.close()
    place.until(lambda: place.statuses[-1].state == "idle", "idle")
    place.stop()
    assert place.notices == []


def test_a_death_counts_although_the_component_is_stopped_with_it(make: Callable[[str], PlaceWithChildren]) -> None:
    """As systemd does with a service of which the kernel has killed a process for memory."""
    place = make(f"{DEADLY}:Hangs")
    place.open(place.announcement())
    for _ in range(2):
        place.until(lambda: place.statuses and place.statuses[-1].state == "training", "training")
        os.kill(place.started[-1].pid, signal.SIGKILL)
        # A busy kernel takes its time, and a process that is still there when its time to stop is up counts as stopped.
        with suppress(ChildProcessError):  # the component has seen it die
            os.waitid(os.P_PID, place.started[-1].pid, os.WEXITED | os.WNOWAIT)
        place.stop()
        place.ipc.local.clear()
        place.start()
    place.settle()
    place.stop()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "died twice in training, last by signal 9 (SIGKILL)" in notice.reason


def test_a_child_that_cannot_begin_is_no_death_of_the_round(
    make: Callable[[str], PlaceWithChildren], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the runtime's packages are replaced."""
    place = make(QUICK)
    starts: list[object] = [OSError(2, "No such file or directory"), "exit", "exit"]

    def start() -> Running:
        what = starts.pop(0) if starts else None
        if isinstance(what, OSError):
            raise what
        return Child(CHILD, str(os.getpid()), str(what)) if what else place.start_child()

    monkeypatch.setattr(place.trainer._runner, "_start", start)
    place.open(place.announcement())
    place.settle()
    place.stop()
    assert starts == []
    assert [notice.status for notice in place.notices] == ["uploaded"]


@pytest.mark.parametrize("kind", ["fit", "get_parameters"])
def test_a_command_that_kills_who_does_it_fails_with_the_cause(
    make: Callable[[str], PlaceWithChildren], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(QUICK)
    monkeypatch.setattr(place.trainer._runner, "_start", lambda: Child(CHILD, str(os.getpid()), "SIGSEGV"))
    command = Command(fleet=FLEET, thing=THING, id="a", kind=kind, bucket="bucket", fit=FitTask())
    place.ipc.from_cloud(device_topic(FLEET, THING, "command"), command.encode())
    [reply] = place.until(
        lambda: [Reply.decode(payload) for topic, payload in place.ipc.cloud if topic.endswith("/reply")], "answered"
    )
    place.stop()
    assert reply.status == "failed"
    assert "died twice at this command, last by signal 11 (SIGSEGV)" in reply.reason


@pytest.mark.parametrize("what", ["babble", "nonsense"])
def test_a_child_whose_words_are_no_report_is_ended(
    make: Callable[[str], PlaceWithChildren], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(QUICK)
    monkeypatch.setattr(place.trainer._runner, "_start", lambda: Child(CHILD, str(os.getpid()), what))
    place.open(place.announcement())
    place.settle()
    place.stop()
    [notice] = place.notices
    assert notice.status == "declined"
    assert "what is not a report" in notice.reason


def test_data_that_kill_who_reads_them_make_a_device_unable(make: Callable[[str], PlaceWithChildren]) -> None:
    place = make(QUICK)
    data = {"loader": f"{DEADLY}:loads_and_dies"}
    place.ipc.change(RUNTIME, {**place.ipc.configurations[RUNTIME], "data": data})
    place.until(lambda: not place.statuses[-1].able, "unable")
    place.stop()
    assert "died while counting the examples by signal 7 (SIGBUS)" in place.statuses[-1].reason
