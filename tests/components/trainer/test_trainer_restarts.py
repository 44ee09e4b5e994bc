"""The trainer killed, stopped and offline at any moment: one answer to each round, and the same one."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fedgrass.protocol.messages import Cohort, FitTask
from fedgrass.protocol.names import update_key
from tests.components.trainer.engine import HaltingEngine, QuickEngine
from tests.components.trainer.place import FLEET, THING, TOPIC, Place
from tests.fixtures.waiting import PATIENCE

KEY = update_key(FLEET, 1, THING)


def test_a_restart_resumes_from_the_last_epoch_to_the_same_update(place: Place, tmp_path: Path) -> None:
    (tmp_path / "unbroken").mkdir()
    other = Place(tmp_path / "unbroken")
    other.have_model()
    other.start()
    other.open(other.announcement(epochs=5))
    other.settle()
    other.stop()
    QuickEngine.reset()
    QuickEngine.allowed = 2
    place.start()
    place.open(place.announcement(epochs=5))
    place.until(lambda: len(QuickEngine.epochs) == 2, "two epochs")
    place.stop()
    QuickEngine.allowed = 1000
    place.start()
    place.settle()
    assert QuickEngine.epochs == [0, 1, 2, 3, 4]
    assert place.streams.s3[KEY] == other.streams.s3[KEY]
    assert len(place.notices) == 1


def test_a_stop_within_an_epoch_loses_no_batch(tmp_path: Path) -> None:
    updates = []
    for name, halt in (("unbroken", 0), ("stopped", 5)):
        HaltingEngine.reset(halt)
        (tmp_path / name).mkdir()
        place = Place(tmp_path / name, engine="tests.components.trainer.engine:HaltingEngine")
        place.have_model()
        place.start()
        place.open(place.announcement(epochs=3))
        if halt:
            place.until(lambda: HaltingEngine.done == HaltingEngine.halt, "within the second epoch")
            job = place.trainer._job
            assert job is not None
            job.cancel()
            HaltingEngine.go.set()
            place.stop()
            assert job.join(PATIENCE)
            place.start()
        place.settle()
        place.stop()
        assert HaltingEngine.done == 9
        updates.append(place.streams.s3[KEY])
    assert updates[0] == updates[1]


def test_a_round_that_closed_leaves_no_checkpoint(place: Place) -> None:
    QuickEngine.allowed = 1
    place.start()
    place.open(place.announcement())
    checkpoint = place.folder / "work" / "checkpoint.safetensors"
    place.until(checkpoint.exists, "a checkpoint")
    place.close()
    place.until(lambda: not checkpoint.exists(), "gone")


def test_after_a_restart_a_round_that_closed_meanwhile_is_dropped(place: Place) -> None:
    QuickEngine.allowed = 1
    place.start()
    place.open(place.announcement(1))
    place.until(lambda: len(QuickEngine.epochs) == 1, "one epoch")
    place.stop()
    place.open(place.announcement(2, cohort=Cohort(salt="s", fraction=1e-9)))
    place.start()
    place.until(lambda: place.trainer._job is None, "dropped")
    QuickEngine.allowed = 1000
    place.settle()
    assert place.notices == []


@pytest.mark.parametrize("moment", ["before the outbox", "after the outbox", "after the upload was accepted"])
def test_a_crash_while_answering_leads_to_one_answer(
    place: Place, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    trainer = place.start()
    if moment == "after the upload was accepted":
        monkeypatch.setattr(trainer._rounds, "answered", crash)
    elif moment == "after the outbox":
        QuickEngine.diverge = True
        monkeypatch.setattr(trainer._rounds, "answered", crash)
    else:
        monkeypatch.setattr(trainer._uploads, "submit", crash)
    place.open(place.announcement())
    with pytest.raises(Crash):
        place.settle()
    place.stop()
    place.start()
    place.settle()
    place.open(place.announcement())
    place.settle()
    assert len(place.notices) == 1
    assert place.streams.uploads == (0 if QuickEngine.diverge else 1)


def test_offline_for_the_whole_round_the_update_arrives_late_and_once(place: Place) -> None:
    place.streams.away = True
    place.ipc.offline = True
    place.start()
    place.open(place.announcement())
    place.until(lambda: place.statuses[-1].state == "uploading", "trained")
    place.stop()
    place.streams.away = False
    place.start()
    place.until(lambda: KEY in place.streams.s3, "uploaded")
    place.stop()
    place.ipc.offline = False
    place.start()
    place.settle()
    assert [notice.status for notice in place.notices] == ["uploaded"]


class TrainerMachine(RuleBasedStateMachine):
    """Rounds opening, closing and repeating, the link and Stream Manager going, crashes: one answer a round, none lost."""

    def __init__(self) -> None:
        super().__init__()
        QuickEngine.reset()
        self._folder = TemporaryDirectory()
        self.place = Place(Path(self._folder.name))
        self.place.have_model()
        self.place.start()
        self.open_round: int | None = None
        self.newest = 0

    def teardown(self) -> None:
        QuickEngine.allowed = 1000_000
        self.place.ipc.offline = self.place.streams.away = False
        self.place.stop()
        self.place.start()  # no pause of a backoff is left to wait for
        self.place.settle()
        self.place.stop()
        answered = [notice.round for notice in self.place.notices]
        assert len(answered) == len(set(answered))
        assert len(self.place.streams.s3) == len(answered) == self.place.streams.uploads
        if self.open_round is not None:
            assert self.open_round in answered
        for thread in threading.enumerate():  # a dropped job ends after its batch
            if thread.name.startswith("round-"):
                thread.join(PATIENCE)
        self._folder.cleanup()

    @rule(number=st.integers(1, 4))
    def announce(self, number: int) -> None:
        if number >= self.newest:
            self.open_round = self.newest = number
            self.place.open(self.place.announcement(number, epochs=2))
        else:
            self.place.ipc.from_cloud(TOPIC, self.place.announcement(number, epochs=2).encode())

    @rule()
    def close(self) -> None:
        if self.open_round is not None:
            self.open_round = None
            self.place.close()

    @rule(steps=st.integers(1, 5))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.place.loop.step()

    @rule()
    def settle(self) -> None:
        if not (self.place.ipc.offline or self.place.streams.away):
            QuickEngine.allowed = 1000_000
            self.place.stop()
            self.place.start()
            self.place.settle()

    @rule(more=st.integers(0, 2))
    def allow(self, more: int) -> None:
        QuickEngine.allowed = len(QuickEngine.epochs) + more

    @rule(offline=st.booleans(), away=st.booleans())
    def outage(self, offline: bool, away: bool) -> None:
        self.place.ipc.offline, self.place.streams.away = offline, away

    @rule()
    def restart(self) -> None:
        self.place.stop()
        self.place.start()


TestTrainerMachine = TrainerMachine.TestCase
TestTrainerMachine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize(("floors", "steps"), [({}, 1), ({"minSteps": "5"}, 5), ({"minExamples": "40"}, 3)])
def test_a_device_whose_time_is_up_sends_what_it_has_and_no_less_than_its_owner_lets_it(
    tmp_path: Path, floors: dict[str, str], steps: int
) -> None:
    HaltingEngine.reset()
    place = Place(tmp_path, engine="tests.components.trainer.engine:HaltingEngine", **floors)
    place.have_model()
    place.start()
    # The whole hour of the round is for the upload, so that no time is left to train.
    place.open(place.announcement(fit=FitTask(epochs=3, partial_margin_seconds=3600)))
    place.settle()
    [notice] = place.notices
    assert (notice.status, HaltingEngine.done) == ("uploaded", steps)
    assert (notice.metrics["steps"], notice.metrics["planned_steps"]) == (steps, 9)
    place.stop()
